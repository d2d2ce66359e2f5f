"""`prefopt` on Polars expressions and Series: `pl.col("ids").prefopt.truncate(ratio=0.5)`.

Registered by `import pyprefopt.data.namespace`, and by loading any function of `pyprefopt.data` that takes columns.
Each operation is elementwise and runs in the eager, the in-memory and the streaming engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import polars as pl

if TYPE_CHECKING:
    from pyprefopt.data.batching.rule import Rounding as SelectionRounding
    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.data.truncation.rule import Rounding, Unit

Column = TypeVar("Column", pl.Expr, pl.Series)


class Prefopt(Generic[Column]):
    """The operations; each is the function of the same name on this column."""

    def __init__(self, column: Column) -> None:
        self._column: Column = column

    def truncate(
        self,
        *,
        ratio: float | None = None,
        length: int | None = None,
        tokens: int | None = None,
        unit: Unit = "tokens",
        rounding: Rounding | None = None,
        tokenizer: Tokenizer | str | Path | None = None,
        mask: Column | None = None,
    ) -> Column:
        """Keep the first part of each list (ids, or anything per token) or text, see `truncate_column`."""
        from pyprefopt.data.truncation.dispatch import truncate_column

        return truncate_column(
            self._column, ratio=ratio, length=length, tokens=tokens, unit=unit, rounding=rounding,
            tokenizer=tokenizer, mask=mask,
        )  # fmt: skip

    def top_k_mask(
        self,
        ratio: float,
        *,
        largest: bool = True,
        mask: Column | None = None,
        rounding: SelectionRounding = "half_up",
        minimum: int = 1,
        ids: Column | None = None,
        excluded_ids: Sequence[int] = (),
    ) -> Column:
        """The `ratio` of each list's tokens with the largest (or smallest) scores, see `data.top_k_mask`."""
        from pyprefopt.data.batching.selection import top_k_mask

        return top_k_mask(
            self._column, ratio, largest=largest, mask=mask, rounding=rounding, minimum=minimum, ids=ids,
            excluded_ids=excluded_ids,
        )  # fmt: skip

    def threshold_mask(
        self,
        threshold: float,
        *,
        largest: bool = True,
        mask: Column | None = None,
        minimum: int = 0,
        ids: Column | None = None,
        excluded_ids: Sequence[int] = (),
    ) -> Column:
        """The tokens whose score is at `threshold` or beyond it, see `data.threshold_mask`."""
        from pyprefopt.data.batching.selection import threshold_mask

        return threshold_mask(
            self._column, threshold, largest=largest, mask=mask, minimum=minimum, ids=ids, excluded_ids=excluded_ids
        )

    def random_mask(
        self,
        ratio: float,
        *,
        seed: int,
        rows: Column | None = None,
        segments: Column | None = None,
        mask: Column | None = None,
        rounding: SelectionRounding = "half_up",
        minimum: int = 1,
        ids: Column | None = None,
        excluded_ids: Sequence[int] = (),
    ) -> Column:
        """As many tokens as `top_k_mask` selects, by chance; the column gives the lengths. See `data.random_mask`."""
        from pyprefopt.data.batching.selection import random_mask

        return random_mask(
            self._column, ratio, seed=seed, rows=rows, segments=segments, mask=mask, rounding=rounding,
            minimum=minimum, ids=ids, excluded_ids=excluded_ids,
        )  # fmt: skip

    def spans_to_mask(self, starts: Column, ends: Column) -> Column:
        """The tokens that overlap this column's spans, see `pyprefopt.data.batching.alignment.spans_to_mask`."""
        from pyprefopt.data.batching.alignment import spans_to_mask

        return spans_to_mask(self._column, starts, ends)

    def encode(self, tokenizer: Tokenizer | str | Path) -> Column:
        """list<u32>: the token ids of each text alone, without special tokens."""
        from pyprefopt.data.columns import apply
        from pyprefopt.data.tokenization.tokenizer import encoded
        from pyprefopt.data.truncation.frames import counter

        native = counter(tokenizer)
        return apply(partial(encoded, native), [self._column], pl.List(pl.UInt32))


pl.api.register_expr_namespace("prefopt")(Prefopt)
pl.api.register_series_namespace("prefopt")(Prefopt)
