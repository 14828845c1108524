"""How models learn: batches on the device, the one optimisation loop, importances, precision. torch and NumPy only."""
