"""Negatives: where they come from, how hard they are, and how many of them are not negative at all."""

AUDIT_AS = {"negatives": ("mined_negatives", "lemon")}
