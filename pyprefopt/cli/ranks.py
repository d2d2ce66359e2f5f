"""What the commands that a launcher starts on every rank have in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pyprefopt.errors import PyprefoptError
from pyprefopt.train.dist import is_main


@contextmanager
def alike() -> Iterator[None]:
    """Around what every rank does alike, such as reading options: its errors are told once."""
    try:
        yield
    except PyprefoptError as error:
        error.all_ranks_alike = True
        raise


def show_log() -> None:
    """Print what stages say: all of it from rank 0, warnings from the others."""
    logger = logging.getLogger("pyprefopt")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO if is_main() else logging.WARNING)
