"""`python -m inferloom` is `inferloom`."""

from inferloom.cli.app import main

main()
