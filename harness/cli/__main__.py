"""`python -m harness.cli`: what `singer-bench` does, for launchers that start modules."""

from harness.cli.main import main

main()
