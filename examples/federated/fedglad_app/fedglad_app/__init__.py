"""A Flower app: FedGLAD on scikit-learn's digits."""
