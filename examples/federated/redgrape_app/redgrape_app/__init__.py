"""A Flower app: RedGrape on long-tailed digits."""
