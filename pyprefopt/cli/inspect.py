"""`pyprefopt inspect DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyprefopt.cli.arguments import Parser


def parser() -> Parser:
    """The options."""
    made = Parser("inspect", "What a prepared folder holds: counts, lengths, rejected rows, settings, a sample.")
    made.add_argument("directory", metavar="DIR", help="a folder made by prepare, or a split of a run's stages/data")
    made.option("row", "position in the input of the row that is shown; None: the first one", type=int)
    made.option("selection", "folder of the tokens that were selected (a split of stages/selection)", metavar="DIR")
    made.option("color", "colours in the sample", choices=("auto", "always", "never"), default="auto")
    return made


def run(argv: Sequence[str]) -> None:
    """Print the report."""
    given = parser().read(argv)

    from pyprefopt.data.preparation.report import inspect

    color = given["color"] == "always" or (
        given["color"] == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    print(inspect(given["directory"], row=given["row"], selection=given["selection"], color=color))
