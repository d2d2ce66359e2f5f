"""Train a policy: `deepspeed scripts/train.py --method sepo`; `--help` lists all settings."""

import sys

from pyprefopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
