"""Reward against divergence from the reference, a point a decoder and setting.

Source: shallow preference signals, section 5.1 and Fig. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyprefopt.evaluation.intervals import SAMPLES, interval, resample_means

if TYPE_CHECKING:
    import polars as pl

Floats = NDArray[np.float64]
MIXING = (0.0, 0.25, 0.5, 0.75, 1.0)  # usual points: a of mixing, the curve
LENGTHS = (5, 10, 15, 20, 30)  # t of length control
THRESHOLDS = (0.1, 0.25, 0.5, 1.0)  # b of the KL threshold
NUMBERS = ("reward", "kl", "kl_exact", "tokens", "finished")  # of each sample, in this order
_SCORED = len(NUMBERS)  # place of the share of samples that have a reward, behind them


def tradeoff_table(
    points: pl.DataFrame, samples: pl.DataFrame, curve: Sequence[int], *, draws: int = SAMPLES, seed: int = 0
) -> pl.DataFrame:
    """Means of every point, with 95 % intervals over prompts that are drawn again, the same ones for all points.

    Args:
        points: `point`, and columns that say what it is, in the order of the table.
        samples: `point`, `row` of the prompt, and NUMBERS; every point has the same prompts, as often. A reward that is
            not finite counts in no mean of rewards.
        curve: the points of the curve to which others are compared: those of mixing.
        draws: how often prompts are drawn.
        seed: of the draws.

    Returns:
        A line a point: its columns but `point`, `samples`, `unscored` (samples without a reward), `reward`, `kl` and
        `tokens` each with `_low` and `_high` (null of one prompt), `kl_exact`, `finished`, and `gain`: its reward less
        that of the curve at the same `kl`, linearly between the curve's points; null for points of the curve, and where
        its `kl` is not between theirs.
    """
    import polars as pl

    prompts = np.unique(samples["row"].to_numpy(), return_inverse=True)[1]
    count = int(prompts.max()) + 1
    sums, counts = [], np.zeros(count)
    for point in points["point"].to_list():
        own = (samples["point"] == point).to_numpy()
        values = [samples[name].to_numpy()[own] for name in NUMBERS]
        scored = np.isfinite(values[0])
        values = [np.where(scored, values[0], 0), *values[1:], scored]
        sums += [np.bincount(prompts[own], value, minlength=count) for value in values]
        counts = np.bincount(prompts[own], minlength=count).astype(np.float64)
    columns = np.stack(sums, axis=1).astype(np.float64)
    shape = (-1, points.height, len(NUMBERS) + 1)
    means = (columns.sum(0) / counts.sum()).reshape(shape)
    drawn = resample_means(columns, counts, samples=draws, seed=seed).reshape(shape)
    both = np.concatenate([means, drawn])
    with np.errstate(invalid="ignore", divide="ignore"):
        both[:, :, 0] /= both[:, :, _SCORED]
    reward, kl = both[:, :, 0], both[:, :, 1]
    gains = reward - rewards_on_curve(kl, kl[:, list(curve)], reward[:, list(curve)])
    gains[:, list(curve)] = np.nan
    total = int(counts.sum())
    unscored = np.rint(total * (1 - means[0, :, _SCORED])).astype(np.int64)
    found: dict[str, Any] = {"samples": [total] * points.height, "unscored": unscored}
    for place, name in enumerate(NUMBERS):
        found[name] = both[0, :, place]
        if name in ("reward", "kl", "tokens"):
            found[f"{name}_low"], found[f"{name}_high"] = _ends(both[1:, :, place], count)
    there = np.isfinite(gains[0])
    found["gain"] = [float(value) if known else None for value, known in zip(gains[0], there, strict=True)]
    lows, highs = _ends(np.where(there, gains[1:], np.nan), count)
    found["gain_low"], found["gain_high"] = lows, highs
    floats = dict.fromkeys(("gain", "gain_low", "gain_high"), pl.Float64)
    table = pl.DataFrame(found, schema_overrides=floats)
    return points.drop("point").hstack(table.with_columns(pl.col(pl.Float64).fill_nan(None)))


def _ends(drawn: Floats, prompts: int) -> tuple[Floats, Floats]:
    """Ends of the intervals, [points] each; NaN of one prompt, which says nothing of others, and where all is NaN."""
    low, high = np.full((2, drawn.shape[1]), np.nan)
    known = np.isfinite(drawn).any(0) & (prompts > 1)
    if known.any():
        low[known], high[known] = interval(drawn[:, known])
    return low, high


def rewards_on_curve(kl: Floats, curve_kl: Floats, curve_reward: Floats) -> Floats:
    """Rewards of a curve at other divergences, linearly between its points; NaN beyond its ends.

    Args:
        kl: [draws, points].
        curve_kl: [draws, points of the curve], in any order.
        curve_reward: of these, [draws, points of the curve].

    Returns:
        [draws, points].

    Example:
        >>> rewards_on_curve(np.array([[1.0, 9.0]]), np.array([[0.0, 2.0]]), np.array([[0.0, 4.0]])).tolist()
        [[2.0, nan]]
    """
    found = np.full(kl.shape, np.nan)
    if curve_kl.shape[1] < 2:
        return found
    for draw, (at, places, heights) in enumerate(zip(kl, curve_kl, curve_reward, strict=True)):
        order = np.argsort(places, kind="stable")
        found[draw] = np.interp(at, places[order], heights[order], left=np.nan, right=np.nan)
    return found
