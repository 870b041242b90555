"""Studies of the family federated."""
