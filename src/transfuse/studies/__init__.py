"""Studies: one module a method, in the folder of its family."""
