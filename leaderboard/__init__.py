"""Records -> tables. Reads harness.records and nothing else of ours; imports no torch."""
