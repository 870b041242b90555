"""Studies of the family unlearning."""
