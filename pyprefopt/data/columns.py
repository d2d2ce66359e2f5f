"""Arrow columns from Rust as Polars Series."""

from __future__ import annotations

from typing import Any

import polars as pl


def to_series(name: str, column: Any, dtype: Any) -> pl.Series:
    """The column under `name`, in `dtype` (a cast where Arrow's type is a variant of it)."""
    return pl.Series(column).alias(name).cast(dtype)
