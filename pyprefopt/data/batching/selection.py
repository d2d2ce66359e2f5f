"""Token selection: top-k% (SePO, Yang et al. 2024, Eq. 25), by threshold, or by chance.

Columns cross to Rust as Arrow, never as Python lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from pyprefopt.data import _native
from pyprefopt.data.batching.rule import Method, Rounding, Selection, check_ratio, check_threshold, token_ids
from pyprefopt.data.columns import Column, apply, as_floats, numbers
from pyprefopt.errors import DataError, check, check_number, did_you_mean

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)

_UNUSED = {"top_k": ("seed",), "threshold": ("seed", "rounding"), "random": ()}
_SIDES = {"chosen": 0, "rejected": 1, "prompt": 254}
_SELECTED = pl.List(pl.Boolean)


def top_k_mask(
    scores: Column,
    ratio: float,
    *,
    largest: bool = True,
    mask: Column | None = None,
    rounding: Rounding = "half_up",
    minimum: int = 1,
    ids: Column | None = None,
    excluded_ids: Sequence[int] = (),
) -> Column:
    """Mark the share `ratio` of each list's tokens that has the largest (or smallest) scores.

    With T the number of tokens that may be selected, the number selected is floor(ratio * T + 0.5) for `half_up`,
    floor(ratio * T) for `floor`, ceil(ratio * T) for `ceil`, of the ratio as the decimal number that was written; at
    least `minimum`, at most T. Ties go to the earlier token, -0.0 equals 0.0.

    Source: SePO (Yang et al. 2024), Eq. 25.

    Args:
        scores: list<f32>, or lists of other numbers, which are compared as f32; a Polars Series or expression, a
            PyArrow array, a DuckDB or `datasets` column.
        ratio: share of the tokens, in (0, 1]; the paper uses 0.3 or 0.5.
        largest: take the largest scores; False: the smallest.
        mask: list<bool> of the tokens that may be selected; None: all.
        rounding: how ratio * T becomes a number of tokens.
        minimum: tokens of each list that are selected at least.
        ids: list<u32>, needed where `excluded_ids` are given.
        excluded_ids: token ids that are never selected.

    Returns:
        list<bool>, of the kind of `scores` (PyArrow for what is not Polars). Null lists stay null.

    Raises:
        ConfigError: a setting breaks its rule.
        DataError: a NaN or null score at a token that may be selected, or lists of different lengths; names the list.

    Example:
        >>> scores = pl.Series([[0.1, 0.9, 0.5], [2.0, 1.0]], dtype=pl.List(pl.Float32))
        >>> top_k_mask(scores, 0.5).to_list()
        [[False, True, True], [True, False]]
    """
    rule = Selection(rounding=rounding, minimum=minimum, excluded_ids=token_ids(excluded_ids))
    check_ratio("ratio", ratio)
    return _by_scores("top_k_mask", scores, mask, ids, rule, (ratio, largest))


def threshold_mask(
    scores: Column,
    threshold: float,
    *,
    largest: bool = True,
    mask: Column | None = None,
    minimum: int = 0,
    ids: Column | None = None,
    excluded_ids: Sequence[int] = (),
) -> Column:
    """Mark the tokens of each list whose score is at or beyond a threshold.

    Args:
        scores: list<f32>, or lists of other numbers; a column of any kind, see `top_k_mask`.
        threshold: in the scores' unit, compared in float32.
        largest: mark scores >= `threshold`; False: scores <= `threshold`.
        mask: as in `top_k_mask`.
        minimum: where fewer tokens are beyond the threshold, the best so many are marked.
        ids: as in `top_k_mask`.
        excluded_ids: as in `top_k_mask`.

    Returns:
        list<bool>, of the kind of `scores`. Null lists stay null.

    Raises:
        ConfigError, DataError: as in `top_k_mask`.

    Example:
        >>> scores = pl.Series([[0.1, 0.9, 0.5], [2.0, 1.0]], dtype=pl.List(pl.Float32))
        >>> threshold_mask(scores, 0.5).to_list()
        [[False, True, True], [True, True]]
    """
    rule = Selection(method="threshold", minimum=minimum, excluded_ids=token_ids(excluded_ids))
    check_threshold("threshold", threshold)
    return _by_scores("threshold_mask", scores, mask, ids, rule, (threshold, largest))


def random_mask(
    lengths: Column,
    ratio: float,
    *,
    seed: int,
    rows: Column | None = None,
    segments: Column | None = None,
    mask: Column | None = None,
    rounding: Rounding = "half_up",
    minimum: int = 1,
    ids: Column | None = None,
    excluded_ids: Sequence[int] = (),
) -> Column:
    """Mark as many tokens as `top_k_mask` selects by chance, each set of them equally likely.

    What is selected depends on (seed, row, segment, number of tokens that may be selected and where they are) alone,
    not on chunks, threads or order.

    Args:
        lengths: tokens of each list, or any list column, whose lists' lengths count; of any kind, see `top_k_mask`.
        ratio: share of the tokens, in (0, 1].
        seed: in [0, 2^64).
        rows: whole numbers >= 0 that name each list; None: its position in the column. An expression needs them, since
            it may see the column in parts.
        segments: whole numbers >= 0 that name each list within its row; None: 0.
        mask: as in `top_k_mask`.
        rounding: as in `top_k_mask`.
        minimum: as in `top_k_mask`.
        ids: as in `top_k_mask`.
        excluded_ids: as in `top_k_mask`.

    Returns:
        list<bool>, of the kind of `lengths`. Null stays null.

    Raises:
        ConfigError: a setting breaks its rule, or an expression comes without `rows`.
        DataError: lengths that are negative or no whole numbers, or lists of different lengths.

    Example:
        >>> random_mask(pl.Series([4, 2]), 0.5, seed=0).to_list()
        [[True, False, True, False], [False, True]]
    """
    rule = Selection(method="random", rounding=rounding, minimum=minimum, excluded_ids=token_ids(excluded_ids))
    _check_ids(rule, ids)
    check_ratio("ratio", ratio)
    _check_seed(seed)
    named = rows is not None or not isinstance(lengths, pl.Expr)
    check(named, "rows", rows, "given for expressions", "for example rows=pl.col('row')")
    kernel = partial(_random, settings=rule.kernel([(ratio, True)], seed))
    return apply(kernel, [lengths, mask, ids, rows, segments], _SELECTED)


def select_tokens(
    frame: Frame,
    *,
    method: Method = "top_k",
    chosen_ratio: float | None = None,
    rejected_ratio: float | None = None,
    chosen_threshold: float | None = None,
    rejected_threshold: float | None = None,
    rounding: Rounding | None = None,
    minimum: int = 1,
    excluded_ids: Sequence[int] = (),
    seed: int | None = None,
) -> Frame:
    """Add the tokens that a method selects of each response to a segments frame.

    `top_k` takes `chosen_ratio` of the chosen response's tokens, those of the highest scores, and `rejected_ratio` of
    the rejected one's, those of the lowest. `threshold` takes chosen tokens with a score >= `chosen_threshold`, and
    rejected ones with a score <= `rejected_threshold`. `random` takes as many as top_k by chance; seed, row and segment
    decide. Only tokens in `mask` are candidates. Numbers and ties are those of `top_k_mask`. The result does not depend
    on threads, chunks or the engine.

    Source: SePO (Yang et al. 2024), Eq. 25, for `top_k`.

    Args:
        frame: of `tokenize`, eager or lazy, with the columns `row`, `kind`, `mask`, and `scores` (list<f32>, or lists
            of other numbers; for random: `segment` in its place).
        method: top_k, threshold or random.
        chosen_ratio: share of the candidates, in (0, 1]; None: all.
        rejected_ratio: likewise.
        chosen_threshold: in the scores' unit; None: all candidates.
        rejected_threshold: likewise.
        rounding: goes with a ratio, as in `top_k_mask`; None: half_up.
        minimum: as in `top_k_mask`.
        excluded_ids: as in `top_k_mask`; looked up in the column `ids`.
        seed: goes with random; None: 0.

    Returns:
        The frame with the column `selected` (list<bool>), null for prompts.

    Raises:
        ConfigError: settings that break their rule, or that the method does not use.
        DataError: a NaN or null score at a candidate, or a kind without a side (`response`); names the row.

    Example:
        >>> half = select_tokens(segments.with_columns(scores=scores), chosen_ratio=0.5, rejected_ratio=0.5)
        >>> data.pack(half, max_tokens=4096, chosen_ratio=0.5, rejected_ratio=0.5)
    """
    rule = Selection(
        method=method, chosen_ratio=chosen_ratio, rejected_ratio=rejected_ratio, chosen_threshold=chosen_threshold,
        rejected_threshold=rejected_threshold, rounding=rounding or "half_up", minimum=minimum,
        excluded_ids=token_ids(excluded_ids),
    )  # fmt: skip
    _check_used(rule, rounding, seed)
    return mark_selected(frame, rule, seed=0 if seed is None else seed)


def mark_selected(frame: Frame, rule: Selection, *, seed: int) -> Frame:
    """`select_tokens` by a rule that is checked."""
    _check_seed(seed)
    names: list[str] = ["mask", "segment"] if rule.method == "random" else ["scores", "mask"]
    names += ["kind", "row", *["ids"] * bool(rule.excluded_ids)]
    _check_schema(frame.collect_schema(), names)
    kernel = partial(_select, names=names, settings=rule.kernel(seed=seed))
    if isinstance(frame, pl.DataFrame):
        return frame.with_columns(kernel([frame[name] for name in names]).alias("selected"))
    selected = pl.map_batches(names, kernel, return_dtype=_SELECTED, is_elementwise=True)
    return frame.with_columns(selected.alias("selected"))


def select_top_k(
    frame: Frame,
    *,
    chosen_ratio: float | None = 0.3,
    rejected_ratio: float | None = 0.3,
    rounding: Rounding = "half_up",
    minimum: int = 1,
    excluded_ids: Sequence[int] = (),
) -> Frame:
    """Add SePO's selection to a segments frame: `select_tokens` with method `top_k` and the paper's ratio.

    Source: SePO (Yang et al. 2024), Eq. 25.

    Args:
        frame: as in `select_tokens`.
        chosen_ratio: as in `select_tokens`.
        rejected_ratio: as in `select_tokens`.
        rounding: as in `top_k_mask`.
        minimum: as in `top_k_mask`.
        excluded_ids: as in `select_tokens`.

    Returns:
        The frame with the column `selected` (list<bool>), null for prompts.

    Raises:
        ConfigError, DataError: as in `select_tokens`.

    Example:
        >>> select_top_k(segments.with_columns(scores=scores), chosen_ratio=0.3, rejected_ratio=0.3)
    """
    return select_tokens(
        frame, chosen_ratio=chosen_ratio, rejected_ratio=rejected_ratio, rounding=rounding, minimum=minimum,
        excluded_ids=excluded_ids,
    )  # fmt: skip


def _by_scores(
    name: str, scores: Column, mask: Column | None, ids: Column | None, rule: Selection, side: tuple[float, bool]
) -> Column:
    _check_ids(rule, ids)
    check(isinstance(side[1], bool), "largest", side[1], "True or False")
    settings = rule.kernel([side])

    def kernel(scores: pl.Series, mask: pl.Series | None, ids: pl.Series | None) -> pl.Series:
        return _run(name, scores, settings | {"mask": mask, "ids": _ids(ids)})

    return apply(kernel, [scores, mask, ids], _SELECTED)


def _random(
    lengths: pl.Series,
    mask: pl.Series | None,
    ids: pl.Series | None,
    rows: pl.Series | None,
    segments: pl.Series | None,
    *,
    settings: dict[str, Any],
) -> pl.Series:
    lengths = lengths.list.len() if isinstance(lengths.dtype, pl.List) else lengths
    if not lengths.dtype.is_integer():
        raise DataError(f"random_mask: lengths must be whole numbers or lists, got {lengths.dtype}; cast the column")
    if (lengths < 0).any():
        raise DataError(f"random_mask: lengths must be >= 0, got {lengths.min()!r}")
    named = {name: numbers(c, pl.UInt64) for name, c in (("rows", rows), ("segments", segments)) if c is not None}
    options = settings | named | {"mask": mask, "ids": _ids(ids)}
    options["lengths"] = numbers(lengths.cast(pl.Int64).fill_null(-1), pl.Int64)
    return _run("random_mask", None, options)


def _ids(ids: pl.Series | None) -> pl.Series | None:
    if ids is None:
        return None
    try:
        return ids.cast(pl.List(pl.UInt32))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"ids must be lists of UInt32, got {ids.dtype}: {error}") from None


def _run(name: str, scores: pl.Series | None, options: dict[str, Any]) -> pl.Series:
    floats = None if scores is None else as_floats(scores, f"{name}: scores")
    try:
        selected = _native.select_tokens(floats, **options)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    return pl.Series("", pa.array(selected), dtype=_SELECTED)


def _select(columns: Sequence[pl.Series], names: Sequence[str], settings: dict[str, Any]) -> pl.Series:
    given = dict(zip(names, columns, strict=True))
    kind, rows = given["kind"], numbers(given["row"], pl.UInt64)
    side = kind.replace_strict(list(_SIDES), list(_SIDES.values()), default=255, return_dtype=pl.UInt8).to_numpy()
    if (side == 255).any():
        line = int((side == 255).argmax())
        raise DataError(
            f"row {rows[line]}: kind '{kind[line]}' has no side to select; select_tokens and select_top_k work on "
            "chosen and rejected responses, top_k_mask, threshold_mask and random_mask on any"
        )
    options = settings | {"mask": given["mask"], "ids": given.get("ids"), "rows": rows}
    options["side"] = np.ascontiguousarray(side)
    if settings["method"] == "random":
        options["lengths"] = given["mask"].list.len().cast(pl.Int64).fill_null(-1).to_numpy()
        options["segments"] = numbers(given["segment"], pl.UInt64)
    return _run(f"select_tokens, column {names[0]}", given.get("scores"), options)


def _check_used(rule: Selection, rounding: Rounding | None, seed: int | None) -> None:
    """ConfigError for settings that the method does not use, and for a threshold that is not there."""
    by_threshold = rule.method == "threshold"
    other, unused = ("ratio", rule.ratios) if by_threshold else ("threshold", rule.thresholds)
    left_out = f"left out with method {rule.method!r}"
    check(unused == (None, None), f"chosen_{other} and rejected_{other}", unused, left_out)
    there = not by_threshold or rule.thresholds != (None, None)
    check(there, "chosen_threshold and rejected_threshold", rule.thresholds, "given with method 'threshold'")
    remedies = {"rounding": "there is no ratio to round", "seed": "choose method='random', or leave seed out"}
    for name, value in (("rounding", rounding), ("seed", seed)):
        check(value is None or name not in _UNUSED[rule.method], name, value, left_out, remedies[name])


def _check_seed(seed: int) -> None:
    check_number("seed", seed, whole=True)
    check(0 <= seed < 1 << 64, "seed", seed, "in [0, 2^64)")


def _check_ids(rule: Selection, ids: Column | None) -> None:
    excluded = rule.excluded_ids
    got = f"excluded_ids {excluded} without ids" if excluded else "ids without excluded_ids"
    remedy = "ids= are the tokens' ids, by which they are left out"
    check((ids is not None) == bool(excluded), "ids and excluded_ids", got, "given together", remedy)


def _check_schema(schema: pl.Schema, names: Sequence[str]) -> None:
    wanted = {
        "scores": pl.List(pl.Float32), "mask": _SELECTED, "kind": pl.String(), "row": pl.UInt64(),
        "segment": pl.UInt16(), "ids": pl.List(pl.UInt32),
    }  # fmt: skip
    for name in names:
        dtype = wanted[name]
        if name not in schema:
            same_type = [other for other, kind in schema.items() if kind == dtype]
            raise DataError(f"the segments frame has no column '{name}' ({dtype}){did_you_mean(name, same_type)}")
        found = schema[name]
        is_number = name == "scores" and isinstance(found, pl.List) and found.inner.is_numeric()
        if found != dtype and not is_number:
            raise DataError(f"column '{name}' must be {dtype}, got {found}; cast it")
