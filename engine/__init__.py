"""Floor 3: modules, layers, losses, optimizers, data and training."""
