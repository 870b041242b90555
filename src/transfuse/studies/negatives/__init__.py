"""Studies of the negatives family."""
