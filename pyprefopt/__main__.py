"""`python -m pyprefopt`."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
