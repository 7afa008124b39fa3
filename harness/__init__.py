"""The machine: contracts, models, data, training, features, probes, records, grid, command line."""

from harness.code_state import close_snapshot

__version__ = "0.1.0"

close_snapshot()
