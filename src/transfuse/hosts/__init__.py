"""Thin glue that the methods of one host share. Nothing here is a method."""
