"""Studies: for each method the arms, the data and the paper's claims, declared before running."""
