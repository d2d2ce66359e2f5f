"""Intervals of means over prompts, by resampling the prompts (bootstrap)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLES = 2000  # resampled sets of prompts
LEVEL = 0.95  # share of them that lies inside an interval
_DRAWN = 2**24  # prompts that are drawn at once


def resample_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], *, samples: int = SAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Means over as many prompts as there are, drawn with replacement, again and again.

    Args:
        sums: of each prompt, a column a quantity, [prompts, quantities].
        counts: that the sums are divided by, [prompts].
        samples: how often prompts are drawn.
        seed: of the draws; all quantities are seen on the same ones.

    Returns:
        [samples, quantities]; NaN where a draw has no count.

    Example:
        >>> resample_means(np.ones((4, 1)), np.ones(4), samples=3)[:, 0]
        array([1., 1., 1.])
    """
    prompts = len(sums)
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN // max(1, prompts))
    found = []
    for first in range(0, samples, at_once):
        size = min(at_once, samples - first)
        drawn = generator.integers(0, prompts, (size, prompts))
        times = np.stack([np.bincount(row, minlength=prompts) for row in drawn]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(found)


def interval(means: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lower and the upper end of each quantity's interval of LEVEL: [quantities] each, NaN draws left out."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail], axis=0)
    return low, high
