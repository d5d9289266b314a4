"""`python -m stmae` is `stmae`."""

import sys

from stmae.cli import script

sys.exit(script())
