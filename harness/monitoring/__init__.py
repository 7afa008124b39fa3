"""Where the runs of a workspace stand, while they run and after."""
