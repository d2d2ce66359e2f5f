"""The command line: parse, run, and say in one line what went wrong."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from pyprefopt.errors import PyprefoptError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training command; the exit code is 0, or 2 where a setting, the data or an artifact breaks its rule."""
    try:
        from pyprefopt.train.resolve import parse_args

        config = parse_args(sys.argv[1:] if argv is None else argv)
    except PyprefoptError as error:
        return _explain(error, all_ranks_alike=True)
    _speak()
    try:
        from pyprefopt.stages.run import train

        train(config)
    except PyprefoptError as error:
        return _explain(error)
    return 0


def _speak() -> None:
    """Show what stages say: all of it from rank 0, warnings from the others."""
    logger = logging.getLogger("pyprefopt")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


def _explain(error: PyprefoptError, *, all_ranks_alike: bool = False) -> int:
    """Print the error in one line, once if every rank has the same one. PYPREFOPT_DEBUG=1 shows the traceback."""
    if os.environ.get("PYPREFOPT_DEBUG") == "1":
        raise error
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 or not all_ranks_alike:
        print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
    return 2
