"""Negatives: where they come from, how hard they are, and how many of them are not negative at all."""
