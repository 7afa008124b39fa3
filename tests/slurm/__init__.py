"""A real Slurm of one node, started for the tests and stopped after them."""
