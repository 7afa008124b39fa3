"""What lies in a workspace: whole or known not to be, locked, of one schema."""
