"""``python -m lipcert``."""

import sys

from lipcert.cli.main import main

sys.exit(main())
