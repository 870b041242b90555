"""A Flower app: FedKA on scikit-learn's digits in four domains."""
