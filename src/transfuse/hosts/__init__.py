"""Glue that the methods of one host share: nothing here belongs to a single method."""
