"""`python -m crystalmon`: the same as the command."""

import sys

from crystalmon.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
