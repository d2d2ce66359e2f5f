"""What the commands that a launcher starts on every rank have in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from pyprefopt.errors import PyprefoptError
from pyprefopt.ranks import is_main


@contextmanager
def alike() -> Iterator[None]:
    """Around what every rank does alike, such as reading options: its errors are told once."""
    try:
        yield
    except PyprefoptError as error:
        error.all_ranks_alike = True
        raise


class _Screen(logging.StreamHandler[TextIO]):
    """Lines above a progress bar, not behind it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def show_log() -> None:
    """Print what stages say: all of it from rank 0, warnings from the others."""
    logger = logging.getLogger("pyprefopt")
    if not logger.handlers:
        logger.addHandler(_Screen())
        logger.setLevel(logging.INFO if is_main() else logging.WARNING)
