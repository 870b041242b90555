"""Thin glue shared by the methods of one host."""
