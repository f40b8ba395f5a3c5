"""`python -m tlkd` is `tlkd`."""

from tlkd.cli import main

main()
