"""The studies: one file a method, in the folder of its family."""
