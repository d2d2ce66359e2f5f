"""Token rewards of a preference set: `python scripts/score.py IN --rewards dpo --model M --out OUT.parquet`."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
