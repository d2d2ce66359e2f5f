"""The subset Ties of RewardBench 2, which has a formula of its own (Malik et al. 2025)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyprefopt.errors import DataError

Scores = Sequence[NDArray[np.float64]]  # of each row, one a response


def ties_score(ids: Sequence[str], scores: Scores, right: Sequence[int]) -> float:
    """The score of the subset Ties of RewardBench 2.

    Rows are `ref:N`, with one right response, and `tied:N`, with several. A row is accurate where its worst right
    response is above the best wrong one; the difference is its gap. The spread of a tied row is the difference of its
    best and worst right response. The score is 0.3 times the accuracy of tied rows, and of ref rows, 0.2 times the
    share of N whose tied gap is above the spread, 0.2 times the share where the lower of both gaps is, and 0.01 times
    the mean of tanh(lower gap / spread - 1), where 0 / 0 counts 0.

    Args:
        ids: of the rows.
        scores: of each row, those of right responses first.
        right: how many these are.

    Returns:
        The score, from -0.01 to 1.01.

    Raises:
        DataError: an id of another form; no N has both rows; a tied row has one right response, or a row no wrong one.

    Example:
        >>> scores = [np.array([2.0, 0.0]), np.array([2.0, 1.5, 0.0])]
        >>> round(ties_score(["ref:1", "tied:1"], scores, [1, 2]), 4)
        1.0096
    """
    return float(Ties.of(ids, scores, right).score())


def check_row(name: str, right: int, responses: int) -> None:
    """DataError for a row of Ties of another id, or without right and wrong responses enough."""
    kind, _, number = name.partition(":")
    if kind not in ("ref", "tied") or not number.isdecimal():
        raise DataError(f"a row of Ties must have an id such as ref:7 or tied:7, got {name!r}")
    fits = right > 1 if kind == "tied" else right == 1
    if not fits or right >= responses:
        raise DataError(
            f"row {name} of Ties must have {'several' if kind == 'tied' else 'one'} right and a wrong response, got "
            f"{right} and {responses - right}"
        )


@dataclass(frozen=True)
class Ties:
    """The rows of Ties by their number N, NaN where there is none."""

    ref: NDArray[np.float64]  # [N] gap of the row ref:N
    tied: NDArray[np.float64]  # [N] gap of the row tied:N
    spread: NDArray[np.float64]  # [N] of the row tied:N

    @classmethod
    def of(cls, ids: Sequence[str], scores: Scores, right: Sequence[int]) -> Ties:
        """The rows, checked as `ties_score` says."""
        found: dict[str, dict[int, float]] = {"ref": {}, "tied": {}, "spread": {}}
        for name, values, count in zip(ids, scores, right, strict=True):
            check_row(name, count, len(values))
            kind, _, number = name.partition(":")
            if int(number) in found[kind]:
                raise DataError(f"row {name} of Ties must be there once; leave out the other one")
            found[kind][int(number)] = float(values[:count].min() - values[count:].max())
            if kind == "tied":
                found["spread"][int(number)] = float(np.ptp(values[:count]))
        if not found["ref"].keys() & found["tied"].keys():
            raise DataError(
                "Ties must have rows ref:N and tied:N of the same N, and no N has both; give the file whole"
            )
        numbers = sorted(found["ref"].keys() | found["tied"].keys())
        return cls(*(np.array([part.get(n, np.nan) for n in numbers]) for part in found.values()))

    def score(self, drawn: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float64]:
        """The score, 0-dim; of numbers that are drawn, [samples, N], one a sample."""
        ref, tied, spread = self.ref[drawn], self.tied[drawn], self.spread[drawn]
        lower, both = np.minimum(tied, ref), ~np.isnan(tied) & ~np.isnan(ref)
        with np.errstate(divide="ignore", invalid="ignore"):
            margins = np.where(both, np.nan_to_num(np.tanh(lower / spread - 1), nan=0.0), np.nan)

        def share(is_so: NDArray[np.bool_], there: NDArray[np.bool_]) -> NDArray[np.float64]:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray((is_so & there).sum(-1) / there.sum(-1))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without a number that has both rows is NaN
            margin = np.nanmean(margins, axis=-1)
        parts = (
            share(tied > 0, ~np.isnan(tied)), share(ref > 0, ~np.isnan(ref)), share(tied > spread, both),
            share(lower > spread, both), margin,
        )  # fmt: skip
        return np.asarray(sum(weight * part for weight, part in zip((0.3, 0.3, 0.2, 0.2, 0.01), parts, strict=True)))
