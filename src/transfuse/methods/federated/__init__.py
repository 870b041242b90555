"""Methods of the family federated: Flower strategies and client applications."""
