"""``python -m lipcert``."""

from lipcert.cli.main import main

main()
