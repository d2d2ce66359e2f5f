"""Scores of a set by a reward model: `python scripts/rank.py IN --reward_model RM --out OUT.parquet`."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["rank", *sys.argv[1:]]))
