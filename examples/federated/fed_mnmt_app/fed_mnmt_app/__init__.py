"""A Flower app: translation adapters, averaged by language family."""
