"""The machine: contracts, models, data, training, features, probes, records, grid, command line."""

__version__ = "0.1.0"
