"""Write the embedded preference set: `python scripts/make_toy.py --out DIR [--seed 0]`."""

from __future__ import annotations

import argparse

from pyprefopt.data.embedded import write_candidates, write_toy


def main() -> None:
    """Parse, write, say where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="directory to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rows")
    parser.add_argument("--train", type=int, default=2000, help="training pairs; a multiple of 8")
    parser.add_argument("--test", type=int, default=400, help="test pairs; a multiple of 8")
    parser.add_argument("--sft", type=int, default=2000, help="SFT rows; a multiple of 8")
    args = parser.parse_args()
    paths = write_toy(args.out, seed=args.seed, train=args.train, test=args.test, sft=args.sft)
    candidates = write_candidates(args.out, seed=args.seed, train=args.train, test=args.test)
    print(f"candidates {candidates[0]}\ntest candidates {candidates[1]}")
    print(f"train {paths.train}\ntest {paths.test}\nsft {paths.sft}\ntokenizer {paths.tokenizer}")


if __name__ == "__main__":
    main()
