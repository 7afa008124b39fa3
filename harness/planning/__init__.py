"""What would run, and how long it would take."""
