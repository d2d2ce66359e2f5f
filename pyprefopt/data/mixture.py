"""Mixtures: `a.jsonl:0.7 b.parquet:0.3` draws shares of rows from files, by a seed, none of them twice."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data.shuffling import permutation
from pyprefopt.errors import ConfigError, check

_WEIGHT = re.compile(r"(?s)(.+):([-+]?(?:[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?|nan|inf))")
OWN = 1 << 32  # epochs from here on are draws of mixtures, and no order of training


def split_weights(source: Any) -> tuple[Any, tuple[float, ...] | None]:
    """What a source names, and the weight of each entry; None where there are none, and all rows are taken.

    Raises:
        ConfigError: some entries have a weight and others none, one weight alone, or one that is not > 0.

    Example:
        >>> split_weights(["a.jsonl:0.7", "b.jsonl:0.3"])
        (['a.jsonl', 'b.jsonl'], (0.7, 0.3))
    """
    entries = list(source) if isinstance(source, list | tuple) and not hasattr(source, "schema") else [source]
    found = [_split(entry) for entry in entries]
    weights = [weight for _, weight in found if weight is not None]
    if not weights:
        return source, None
    without = next((entry for entry, (_, weight) in zip(entries, found, strict=True) if weight is None), None)
    remedy = f"write {without}:0.5, or leave out the others' weights"
    check(without is None, "data", str(without), "given with a weight, as the others are", remedy)
    if len(weights) == 1:
        remedy = "put spaces, not commas, between files" if "," in str(entries[0]) else "leave it out"
        raise ConfigError(f"data must be several files where one has a weight, got {entries[0]!r}; {remedy}")
    for entry, weight in zip(entries, weights, strict=True):
        check(0 < weight < math.inf, "data", entry, "given with a weight > 0", "leave the file out to take none of it")
    return [name for name, _ in found], tuple(weights)


def _split(entry: Any) -> tuple[Any, float | None]:
    """A name and its weight; a file that is called so has none."""
    found = _WEIGHT.fullmatch(entry) if isinstance(entry, str) else None
    if found is None or _is_there(entry):
        return entry, None
    return found[1], float(found[2])


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def largest_sizes(counts: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows each of the sets gives to the largest mixture of these weights that none is too small for.

    >>> largest_sizes([1000, 300], [0.7, 0.3])
    [700, 300]
    """
    whole = sum(weights)
    total = min(count * whole / weight for count, weight in zip(counts, weights, strict=True))
    return [min(count, int(total * w / whole + 1e-9)) for count, w in zip(counts, weights, strict=True)]


def draw(count: int, size: int, *, seed: int, number: int) -> NDArray[np.bool_]:
    """Which of `count` rows are among the `size` that are drawn from set `number` of a mixture."""
    kept = np.zeros(count, np.bool_)
    kept[permutation(count, seed=seed, epoch=OWN + number)[:size]] = True
    return kept


def kept_rows(rows: pa.Array | pa.Table, kept: NDArray[np.bool_]) -> pa.Array | pa.Table:
    """The rows that are kept; of JSON lines the others become blank, so that every line has its number."""
    if isinstance(rows, pa.Table):
        return rows.filter(pa.array(kept))
    lines = rows.to_numpy().tobytes().split(b"\n")
    row = iter(kept)
    left = [line if not line.strip() or next(row) else b"" for line in lines]
    return pa.Array.from_buffers(pa.uint8(), len(joined := b"\n".join(left)), [None, pa.py_buffer(joined)])
