"""`pyprefopt inspect DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyprefopt.cli.options import read_options
from pyprefopt.settings.command_line import loose_words


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What a prepared folder holds: counts, lengths, rejected rows, settings, a sample."""

    directory: str = loose_words("DIR")  # a folder made by prepare, or a split of a run's stages/data
    row: int | None = None  # position in the input of the row that is shown; None: the first one
    selection: str | None = None  # folder of the tokens that were selected (a split of stages/selection)
    color: Literal["auto", "always", "never"] = "auto"  # colours in the sample


def run(argv: Sequence[str]) -> None:
    """Print the report."""
    options = read_options(Inspect, argv)

    from pyprefopt.data.preparation.report import inspect

    on_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    color = options.color == "always" or (options.color == "auto" and on_terminal)
    print(inspect(options.directory, row=options.row, selection=options.selection, color=color))
