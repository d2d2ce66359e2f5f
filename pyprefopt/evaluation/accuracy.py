"""How often the beginning of both responses ranks a pair as the data does, by ratio and by length.

    scores = PrefixScores.of(store, signal, cuts)   # one scoring of whole responses serves all points
    table = scores.table(prompts_of(store))         # accuracy, interval, ties, agreement, a line a point

Source: shallow preference signals, Fig. 2 and 5: the implicit reward log π − log π_ref of the first tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyprefopt.data.store.segments import KINDS, SegmentStore
from pyprefopt.data.truncation.rule import RatioBase, Rounding, Truncation
from pyprefopt.errors import DataError, check, check_number
from pyprefopt.evaluation.intervals import LEVEL, SAMPLES, interval, resample_means

if TYPE_CHECKING:
    import polars as pl

Normalize = Literal["sum", "mean"]
Floats = NDArray[np.float64]
RATIOS = (0.05, 0.1, 0.2, 0.25, 0.33, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WITHIN = 0.01  # of the full accuracy: where the signal counts as complete
_AT_ONCE = 2**22  # tokens whose sums are held at once


@dataclass(frozen=True)
class Cuts:
    """Where responses are cut: at shares of their tokens, and at numbers of tokens."""

    ratios: Sequence[float] = RATIOS
    lengths: Sequence[int] = LENGTHS
    ratio_base: RatioBase = "own"  # a ratio is of each response's own tokens, or of the pair's shorter response
    rounding: Rounding = "ceil"  # of ratio times tokens

    def __post_init__(self) -> None:
        for name in ("ratios", "lengths"):
            values = getattr(self, name)
            listed = isinstance(values, Sequence) and not isinstance(values, str)
            check(listed, name, values, "a list of numbers", "write [0.5] for one")
        Truncation(ratio=1, ratio_base=self.ratio_base, rounding=self.rounding)
        for ratio in self.ratios:
            check_number("ratios", ratio)
            check(0 < ratio <= 1, "ratios", ratio, "in (0, 1]")
        for length in self.lengths:
            check_number("lengths", length, whole=True)
            check(length > 0, "lengths", length, "> 0")

    @property
    def points(self) -> list[tuple[str, float]]:
        """`ratio` or `length` with its value, each once and in order; ratio 1 is the last."""
        lengths = [("length", float(length)) for length in sorted(set(self.lengths))]
        return lengths + [("ratio", float(ratio)) for ratio in sorted({*self.ratios, 1.0})]

    def rule(self, kind: str, value: float) -> Truncation:
        """The truncation of a point."""
        if kind == "length":
            return Truncation(tokens=int(value))
        return Truncation(ratio=value, ratio_base=self.ratio_base, rounding=self.rounding)


@dataclass(frozen=True)
class PrefixScores:
    """What the prefixes of every pair score, at every point of some cuts."""

    points: list[tuple[str, float]]
    chosen: Floats  # [points + 1, pairs]; the last are the whole responses
    rejected: Floats  # [points + 1, pairs]
    uncut: NDArray[np.bool_]  # whether a point leaves both responses whole, [points, pairs]

    @classmethod
    def of(
        cls, store: SegmentStore, signal: NDArray[np.floating], cuts: Cuts, *, normalize: Normalize = "sum"
    ) -> PrefixScores:
        """Sum a signal of tokens over prefixes, in float64.

        Args:
            store: segments of pairs.
            signal: of every response token, in the order of `store.response_offsets`; what `mask` leaves out counts
                nothing.
            cuts: where responses are cut.
            normalize: `sum`, or `mean` over the tokens that are scored.

        Returns:
            The scores. Where a cut leaves both responses of a pair the same tokens they are the same number.

        Raises:
            DataError: the store holds no pairs.
        """
        chosen = np.flatnonzero(store.kinds == KINDS.index("chosen"))
        if not len(chosen):
            raise DataError("there must be pairs of a chosen and a rejected response, and there is none")
        rejected = np.flatnonzero(store.kinds == KINDS.index("rejected"))
        ends = np.stack([*_kept(store, [cuts.rule(*point) for point in cuts.points]), store.lengths])
        values = np.where(store.response_mask, signal, 0).astype(np.float64)
        better, worse = (_prefix_sums(store, values, lines, ends[:, lines]) for lines in (chosen, rejected))
        if normalize == "mean":
            mask = store.response_mask.astype(np.float64)
            better /= np.maximum(1, _prefix_sums(store, mask, chosen, ends[:, chosen]))
            worse /= np.maximum(1, _prefix_sums(store, mask, rejected, ends[:, rejected]))
        shared = _shared_tokens(store, chosen, rejected)
        same = (ends[:, chosen] == ends[:, rejected]) & (ends[:, chosen] <= shared)
        uncut = (ends[:, chosen] == store.lengths[chosen]) & (ends[:, rejected] == store.lengths[rejected])
        return cls(cuts.points, better, np.where(same, better, worse), uncut)

    def take(self, pairs: NDArray[np.bool_]) -> PrefixScores:
        """Those of some of the pairs, [pairs]."""
        return PrefixScores(self.points, self.chosen[:, pairs], self.rejected[:, pairs], self.uncut[:, pairs])

    @property
    def right(self) -> Floats:
        """1 where chosen scores higher, 1/2 for a tie, 0 else: [points + 1, pairs]."""
        return (np.sign(self.chosen - self.rejected) + 1) / 2

    def table(self, prompts: NDArray[np.int64], *, samples: int = SAMPLES, seed: int = 0) -> pl.DataFrame:
        """A line a point.

        Args:
            prompts: number of each pair's prompt, [pairs] in [0, prompts); the interval is over them.
            samples: resampled sets of prompts.
            seed: of the resampling.

        Returns:
            `kind` (ratio or length), `point`, `accuracy` (a tie is 1/2), its 95 % interval `low` to `high` (null of one
            prompt), `ties`, `pairs`, `uncut` (pairs that the point leaves whole), `mean_margin` (chosen less rejected),
            `agreement` (the share of pairs that are decided as whole responses are).
        """
        import polars as pl

        right, whole = self.right[:-1], self.right[-1]
        low, high = interval(_resampled(right, prompts, samples, seed))
        if not prompts.any():  # one prompt says nothing of others
            low = high = np.full(len(low), np.nan)
        kinds, values = zip(*self.points, strict=True)
        return pl.DataFrame(
            {
                "kind": kinds,
                "point": values,
                "accuracy": right.mean(1),
                "low": low,
                "high": high,
                "ties": (right == 0.5).sum(1),
                "pairs": np.full(len(values), right.shape[1]),
                "uncut": self.uncut[:-1].sum(1),
                "mean_margin": (self.chosen - self.rejected)[:-1].mean(1),
                "agreement": (right == whole).mean(1),
            }
        ).with_columns(pl.col("low", "high").fill_nan(None))

    def depth(
        self, prompts: NDArray[np.int64], *, within: float = WITHIN, samples: int = SAMPLES, seed: int = 0
    ) -> dict[str, dict[str, float | None]]:
        """How early the decision is made: the smallest ratio and length whose accuracy is that of whole responses.

        Args:
            prompts: as in `table`.
            within: how much lower than that of whole responses it may be.
            samples: as in `table`.
            seed: as in `table`.

        Returns:
            `ratio` and `length`, each with `point`, `low`, `high` (95 % interval, None of one prompt); None where no
            length is enough.
        """
        right = self.right
        draws = np.concatenate([right.mean(1)[None], _resampled(right, prompts, samples, seed)])
        enough = draws >= draws[:, -1:] - within - 1e-12
        found: dict[str, dict[str, float | None]] = {}
        for kind in ("ratio", "length"):
            own = [index for index, point in enumerate(self.points) if point[0] == kind]
            if not own:
                continue
            values = np.array([self.points[index][1] for index in own] + [np.inf])
            hit = np.concatenate([enough[:, own], np.ones((len(draws), 1), bool)], axis=1)
            first = values[hit.argmax(1)]
            low, high = np.quantile(first[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
            if not prompts.any():
                low = high = np.inf
            ends = {"point": first[0], "low": low, "high": high}
            found[kind] = {name: None if np.isinf(value) else float(value) for name, value in ends.items()}
        return found


def prompts_of(store: SegmentStore, seen: dict[bytes, int] | None = None) -> NDArray[np.int64]:
    """A number for each pair's prompt, equal for equal tokens: [pairs]; `seen` keeps those of other stores."""
    prompts = store.table["ids"].filter(pa.array(store.segments == 0))
    seen = {} if seen is None else seen
    return np.array(
        [
            seen.setdefault(ids.values.to_numpy().tobytes(), len(seen))
            for chunk in prompts.chunks
            for ids in chunk
        ],
        dtype=np.int64,
    )  # fmt: skip


def tables_by(scores: PrefixScores, prompts: NDArray[np.int64], groups: Sequence[object], column: str) -> pl.DataFrame:
    """`PrefixScores.table` of every group of pairs, behind the column that groups them.

    That has its own name, or `by_NAME` where the table has such a column.
    """
    import polars as pl

    names = np.array(["(none)" if group is None else str(group) for group in groups])
    tables = []
    for name in sorted(set(names)):
        own = names == name
        _, numbers = np.unique(prompts[own], return_inverse=True)
        table = scores.take(own).table(numbers.astype(np.int64))
        title = f"by_{column}" if column in table.columns else column
        tables.append(table.select(pl.lit(name).alias(title), pl.all()))
    return pl.concat(tables)


def format_depth(depth: Mapping[str, Mapping[str, float | None]], within: float) -> str:
    """The depth in a sentence."""
    parts = []
    for kind, unit in (("ratio", "of each response"), ("length", "tokens")):
        if kind not in depth:
            continue
        point, low, high = (depth[kind][name] for name in ("point", "low", "high"))
        if point is None:
            parts.append(f"none of the {kind}s")
            continue
        ends = " to ".join("more" if end is None else f"{end:g}" for end in (low, high))
        parts.append(f"{point:g} {unit}" + ("" if low is None else f" ({ends})"))
    return f"depth: {' or '.join(parts)}: as right as whole responses, or at most {within:g} less"


def _kept(store: SegmentStore, rules: Sequence[Truncation]) -> Iterator[NDArray[np.int64]]:
    """Tokens of each line that each truncation keeps, [lines]: counted by the truncation itself."""
    import polars as pl

    from pyprefopt.data.truncation.dispatch import truncate_by

    read = [name for name in ("row", "segment", "ids", "mask", "starts") if name in store.table.column_names]
    frame = pl.DataFrame(store.table.select(read))
    for rule in rules:
        yield truncate_by(frame, rule)["ids"].list.len().to_numpy().astype(np.int64)


def _prefix_sums(store: SegmentStore, values: Floats, lines: NDArray[np.int64], ends: NDArray[np.int64]) -> Floats:
    """Sums of the first `ends` [points, lines] values of each line, [points, lines]; each line is added up alone."""
    starts, lengths = store.response_offsets[lines], store.lengths[lines]
    longest = int(lengths.max(initial=1))
    at_once = max(1, _AT_ONCE // longest)
    sums = np.zeros(ends.shape)
    for first in range(0, len(lines), at_once):
        part = slice(first, first + at_once)
        places = np.arange(longest)
        inside = places < lengths[part, None]
        padded = np.zeros((inside.shape[0], longest + 1))
        padded[:, 1:][inside] = values[(starts[part, None] + places)[inside]]
        totals = np.cumsum(padded, axis=1)
        sums[:, part] = np.take_along_axis(totals, ends[:, part].T, axis=1).T
    return sums


def _shared_tokens(store: SegmentStore, chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> NDArray[np.int64]:
    """With how many tokens both responses of each pair begin alike, [pairs]."""
    ids = pc.list_flatten(store.table["ids"]).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(store.lengths)])
    shared = np.zeros(len(chosen), np.int64)
    for pair, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        size = min(store.lengths[one], store.lengths[other])
        unlike = ids[offsets[one] : offsets[one] + size] != ids[offsets[other] : offsets[other] + size]
        shared[pair] = int(unlike.argmax()) if unlike.any() else size
    return shared


def _resampled(right: Floats, prompts: NDArray[np.int64], samples: int, seed: int) -> Floats:
    """Accuracies on resampled prompts, [samples, points]."""
    count = int(prompts.max()) + 1
    sums = np.stack([np.bincount(prompts, row, minlength=count).astype(np.float64) for row in right], axis=1)
    return resample_means(sums, np.bincount(prompts, minlength=count).astype(np.float64), samples=samples, seed=seed)
