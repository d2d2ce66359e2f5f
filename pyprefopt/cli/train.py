"""`pyprefopt train`: one training run; what `deepspeed scripts/train.py` runs on every rank."""

from __future__ import annotations

from collections.abc import Sequence

from pyprefopt.cli.options import on_all_ranks, parse_args
from pyprefopt.log import show_log


def run(argv: Sequence[str]) -> None:
    """Train by the options."""
    show_log()
    with on_all_ranks():
        config = parse_args(argv)
    show_log(config.log_level)

    from pyprefopt.pipeline.run import train

    train(config)
