"""Groups become jobs: on a cluster through Slurm, on one machine through a queue of its own.

What is to be submitted is told by the workspace (`units`), what was submitted is kept in it (`ledger`), and the code
that jobs run is a copy taken at submission (`snapshot`). A job does its part and nothing else (`work`).
"""
