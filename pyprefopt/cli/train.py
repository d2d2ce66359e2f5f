"""`pyprefopt train`: one training run; what `deepspeed scripts/train.py` runs on every rank."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from pyprefopt.errors import PyprefoptError


def run(argv: Sequence[str]) -> None:
    """Train as the options say."""
    try:
        from pyprefopt.train.resolve import parse_args

        config = parse_args(argv)
    except PyprefoptError as error:
        error.all_ranks_alike = True
        raise
    logger = logging.getLogger("pyprefopt")
    if not logger.handlers:  # what stages say: all of it from rank 0, warnings from the others
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)

    from pyprefopt.stages.run import train

    train(config)
