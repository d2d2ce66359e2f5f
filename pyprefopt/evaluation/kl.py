"""Divergence of two models by position in the responses, from its values at every token.

Source: shallow preference signals, Fig. 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyprefopt.data.store.segments import KINDS, SegmentStore

if TYPE_CHECKING:
    import polars as pl

SIDES = ("chosen", "rejected")
Z95 = 1.959964  # standard errors on each side of a 95 % interval


def kl_by_position(
    store: SegmentStore, values: Mapping[str, NDArray[np.floating]], prompts: NDArray[np.int64]
) -> pl.DataFrame:
    """Average values of tokens at each position.

    Args:
        store: segments of pairs, or of single responses, which have no sides.
        values: name -> of every response token, in the order of `store.response_offsets`.
        prompts: number of each pair's prompt, [pairs]; responses of one prompt count as one draw in the intervals.

    Returns:
        A line a side (all; of pairs chosen, rejected too) and position: `side`, `position` (scored tokens before it,
        from 0), `survivors` (responses that have it), and for each name its mean, `NAME_low` and `NAME_high` (95 %,
        normal; null where one prompt alone has it).
    """
    import polars as pl

    lines, places, groups = _scored_tokens(store, prompts)
    tables = []
    for side in sides_of(store):
        own = np.ones(len(lines), bool) if side == "all" else store.kinds[lines] == KINDS.index(side)
        place = places[own]
        survivors = np.bincount(place)
        columns: dict[str, object] = {
            "side": [side] * len(survivors), "position": np.arange(len(survivors)), "survivors": survivors,
        }  # fmt: skip
        for name, flat in values.items():
            scored = flat[store.response_mask][own].astype(np.float64)
            mean = np.bincount(place, scored) / survivors
            spread = Z95 * _standard_errors(scored - mean[place], place, groups[own], survivors)
            columns |= {name: mean, f"{name}_low": mean - spread, f"{name}_high": mean + spread}
        tables.append(pl.DataFrame(columns).fill_nan(None))
    return pl.concat(tables)


def sides_of(store: SegmentStore) -> tuple[str, ...]:
    """Sides of which there are responses, all of them first."""
    return ("all", *(side for side in SIDES if (store.kinds == KINDS.index(side)).any()))


def kl_of_responses(
    store: SegmentStore, values: Mapping[str, NDArray[np.floating]], prompts: NDArray[np.int64]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Average over responses the sum of a response's scored tokens: side -> name -> mean, low, high.

    Of one prompt low and high are None.
    """
    lines, _, groups = _scored_tokens(store, prompts)
    responses = np.flatnonzero(store.segments != 0)
    group_of = np.zeros(store.num_lines, np.int64)
    group_of[lines] = groups
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for side in sides_of(store):
        own = responses if side == "all" else responses[store.kinds[responses] == KINDS.index(side)]
        zeros, count = np.zeros(len(own), np.int64), np.array([len(own)])
        found[side] = {}
        for name, flat in values.items():
            sums = np.bincount(lines, flat[store.response_mask].astype(np.float64), minlength=store.num_lines)[own]
            spread = Z95 * float(_standard_errors(sums - sums.mean(), zeros, group_of[own], count)[0])
            mean = float(sums.mean())
            ends = (None, None) if np.isnan(spread) else (mean - spread, mean + spread)
            found[side][name] = dict(zip(("mean", "low", "high"), (mean, *ends), strict=True))
    return found


def _scored_tokens(
    store: SegmentStore, prompts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of every scored token its line, how many scored tokens of the line are before it, and its prompt's number."""
    lines = np.repeat(np.arange(store.num_lines), np.diff(store.response_offsets))[store.response_mask]
    counts = np.bincount(lines, minlength=store.num_lines)
    places = np.arange(len(lines)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(np.arange(store.num_rows), np.diff(store.group_offsets))
    return lines, places, prompts[rows[lines]]


def _standard_errors(
    residuals: NDArray[np.float64], place: NDArray[np.int64], groups: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Standard error of the mean at each place, residuals of one group being added up before they are squared."""
    keys, index = np.unique(place * (int(groups.max(initial=0)) + 1) + groups, return_inverse=True)
    sums = np.bincount(index, residuals)
    places = keys // (int(groups.max(initial=0)) + 1)
    errors: NDArray[np.float64] = np.sqrt(np.bincount(places, sums**2, minlength=len(counts))) / counts
    errors[np.bincount(places, minlength=len(counts)) < 2] = np.nan  # one prompt says nothing of others
    return errors
