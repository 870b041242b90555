"""Loaders, one module a kind of data. Nothing is downloaded unless `transfuse data get` is typed."""
