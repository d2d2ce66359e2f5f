"""Prepare preference data for training: `python scripts/prepare.py IN --tokenizer T --out DIR`."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
