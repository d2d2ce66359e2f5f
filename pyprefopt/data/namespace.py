"""`prefopt` on Polars expressions and Series: `pl.col("ids").prefopt.truncate(ratio=0.5)`.

Registered by `import pyprefopt.data.namespace`, and by loading any function of `pyprefopt.data` that takes columns.
Each operation is elementwise and runs in the eager, the in-memory and the streaming engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import polars as pl

from pyprefopt.data.batching.alignment import spans_to_mask
from pyprefopt.data.batching.selection import random_mask, threshold_mask, top_k_mask
from pyprefopt.data.columns import apply
from pyprefopt.data.tokenization.tokenizer import GivenTokenizer, encoded
from pyprefopt.data.truncation.dispatch import truncate_column
from pyprefopt.data.truncation.frames import counter

Column = TypeVar("Column", pl.Expr, pl.Series)
Settings = ParamSpec("Settings")


def _operation(
    function: Callable[Concatenate[Any, Settings], Any],
) -> Callable[Concatenate[Prefopt[Column], Settings], Column]:
    """The function as a method, which works on the namespace's column."""

    @wraps(function)
    def method(self: Prefopt[Column], /, *args: Settings.args, **settings: Settings.kwargs) -> Column:
        result: Column = function(self.column, *args, **settings)
        return result

    return method


def encode(column: Column, tokenizer: GivenTokenizer) -> Column:
    """list<u32>: the token ids of each text alone, without special tokens."""
    return apply(partial(encoded, counter(tokenizer)), [column], pl.List(pl.UInt32))


class Prefopt(Generic[Column]):
    """The operations; each is the function of the same name (truncate: `truncate_column`) on this column."""

    def __init__(self, column: Column) -> None:
        self.column: Column = column

    truncate = _operation(truncate_column)
    top_k_mask = _operation(top_k_mask)
    threshold_mask = _operation(threshold_mask)
    random_mask = _operation(random_mask)
    spans_to_mask = _operation(spans_to_mask)
    encode = _operation(encode)


pl.api.register_expr_namespace("prefopt")(Prefopt)
pl.api.register_series_namespace("prefopt")(Prefopt)
