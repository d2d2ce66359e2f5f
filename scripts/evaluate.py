"""What models say of given pairs: `python scripts/evaluate.py accuracy PAIRS --policy P --ref R --out DIR`."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
