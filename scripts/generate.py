"""Answers to prompts: `deepspeed scripts/generate.py PROMPTS --policy P --out OUT.parquet`."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
