"""Flower: an in-process grid, flat views of array records, paired client samplers, federated partitions."""
