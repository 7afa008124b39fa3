"""Equal-budget search of hyperparameters."""
