"""Tables as files and on a terminal."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from pyprefopt.storage.files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def write_csv(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    buffer = BytesIO()
    frame.write_csv(buffer)
    atomic_write(path, buffer.getvalue())


def show_table(frame: pl.DataFrame) -> str:
    """All rows and columns of a table, for a terminal."""
    import polars as pl

    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=200,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN",
    ):
        return str(frame)
