"""Run a study, a grid of runs: `deepspeed scripts/study.py ratios --quick`; without a name, list them."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
