"""The contract checks that every method and task passes, and what they look at."""
