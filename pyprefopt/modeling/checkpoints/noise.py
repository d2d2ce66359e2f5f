"""What transformers shows while it loads and saves, turned off where a run shows it itself or means nothing by it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Inside, these loggers and transformers tell errors alone, nothing is drawn, and no generator is disturbed."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("transformers", *loggers))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with without_bars(), warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, transformers draws no progress bars."""
    from transformers.utils import logging as theirs

    drawn = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            theirs.enable_progress_bar()


@contextmanager
def without_load_report() -> Iterator[None]:
    """Inside, transformers warns of no missing or unused weights: `load_model` reports those that matter."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter.addFilter(keep)
    try:
        yield
    finally:
        reporter.removeFilter(keep)
