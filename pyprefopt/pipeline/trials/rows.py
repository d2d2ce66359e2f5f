"""Random rows on which a method is tried: packed as in training, with everything that a method may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from pyprefopt.data.batching.packing import Packer, dummy_batch
from pyprefopt.data.store.segments import KINDS, SegmentStore
from pyprefopt.types import Outputs, PackedBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pyprefopt.losses import Method

SHAPES = "shapes"  # the check without which nothing can be trained
RATIO = 0.5  # of the tokens that are selected, where some are


class Differs(Exception):  # noqa: N818  (a finding)
    """What a check found."""


def as_tensor(value: Any, function: str) -> Tensor:
    """The value, which a function of the user's gave."""
    if not isinstance(value, torch.Tensor):
        raise Differs(f"{function} must give a tensor, got {type(value).__name__}")
    return value


def find_worst(one: Tensor, other: Tensor, tolerance: float) -> int | None:
    """Where two differ most, beyond the tolerance; None: they are the same."""
    off = (one - other).abs() - tolerance * (1 + other.abs())
    off = torch.where(off.isnan(), torch.full_like(off, torch.inf), off)
    return int(off.argmax()) if len(off) and off.max() > 0 else None


@dataclass(frozen=True)
class Rows:
    """Groups of responses with a number for each of their tokens, by the flat order of the store's responses."""

    store: SegmentStore
    policy: NDArray[np.float64]  # log-probs of the policy, [T]
    scores: NDArray[np.float64]  # of each line, where the method scores whole responses
    columns: dict[str, Any]  # of the packer
    packing: dict[str, Any]
    whole: bool  # whether the method scores whole responses
    selects: bool  # whether selection goes with the method
    alone: bool = False  # whether the values are of one token in no row

    @property
    def count(self) -> int:
        """Groups."""
        return self.store.num_rows

    def values(self) -> Tensor:
        """What the loss is differentiated by: log-probs [T], or the scores of all lines."""
        return torch.tensor(self.scores if self.whole else self.policy)

    def batch(self, groups: Sequence[int] | None = None, layout: str = "shared", **packing: Any) -> PackedBatch:
        """These groups in one batch, in float64."""
        packer = Packer(self.store, layout=layout, **self.columns, **self.packing | packing)  # type: ignore[arg-type]
        (batch,) = packer.assemble([np.asarray(range(self.count) if groups is None else groups)])
        return _in_double(batch)

    def outputs(self, batch: PackedBatch, values: Tensor) -> Outputs:
        """What a model would give for the batch, of these log-probs or scores."""
        if self.whole:
            return Outputs(scores=values if self.alone else values[batch.response_line])
        at = batch.token_position
        if not self.alone:
            at = torch.as_tensor(self.store.response_offsets)[batch.response_line[batch.response_index]] + at
        logps = values[at]
        reference = torch.zeros_like(logps) if batch.ref_logps is None else batch.ref_logps
        return Outputs(logps=logps, kl=(logps - reference).square() / 2)

    def name(self, at: int) -> str:
        """Which response, or which token of one, a value belongs to."""
        starts = self.store.response_offsets
        line = at if self.whole else int(np.searchsorted(starts, at, side="right")) - 1
        number = self.store.segments[line]
        kind = KINDS[self.store.kinds[line]]
        told = f"row {self.store.table['row'][line].as_py()}, " + (f"response {number}" if kind == "response" else kind)
        return told if self.whole else f"{told}, token {at - int(starts[line])}"


def random_rows(
    method: Method, *, groups: int = 6, longest: int = 8, select: bool = False, weights: bool = False, seed: int = 0
) -> Rows:
    """Rows of the kind that the method trains on."""
    random = np.random.default_rng(seed)
    kinds = ["response"] * 3 if method.trains_on == "candidates" else ["chosen", "rejected"]
    lengths = random.integers(1, longest + 1, (groups, len(kinds)))
    lengths[0, 0] = 1
    return _rows(method, random, kinds, lengths, select=select, weights=weights)


def _rows(
    method: Method, random: np.random.Generator, kinds: list[str], lengths: NDArray[Any], *, select: bool, weights: bool
) -> Rows:
    lines: list[dict[str, Any]] = []
    for row, own in enumerate(lengths.tolist()):
        lines.append({"row": row, "segment": 0, "kind": "prompt", "ids": [1, 2], "mask": [False, False], "score": None})
        for number, (kind, length) in enumerate(zip(kinds, own, strict=True), start=1):
            line = {"row": row, "segment": number, "kind": kind, "ids": [7] * length, "mask": [True] * length}
            lines.append(line | {"score": float(len(kinds) - number)})
    store = SegmentStore.from_frame(_table(lines))
    count = int(store.response_offsets[-1])
    columns: dict[str, Any] = {}
    if "ref_logps" in method.needs or "ref_kl" in method.needs:
        columns["ref_logps"] = -random.exponential(2.0, count)
    if "token_rewards" in method.needs:
        columns["token_rewards"] = random.normal(0.0, 1.0, count)
    if weights:
        columns["user_weights"] = np.where(random.uniform(size=count) < 1 / 3, 0.0, random.uniform(0.5, 2.0, count))
    if select:
        columns["selected"] = random.uniform(size=count) < RATIO
        columns |= {"chosen_ratio": RATIO, "rejected_ratio": RATIO}
    whole = "reward_head" in method.needs
    packing = {
        "last_token": whole,
        "keep_unweighted": method.reads_unweighted,
        "only": "chosen" if method.trains_on == "responses" else None,
    }
    return Rows(
        store, -random.exponential(2.0, count), random.normal(0.0, 1.0, store.num_lines), columns, packing, whole,
        selects=not whole and method.trains_on == "pairs",
    )  # fmt: skip


def _table(lines: list[dict[str, Any]]) -> pa.Table:
    types = {
        "row": pa.uint64(), "segment": pa.uint16(), "kind": pa.string(), "ids": pa.large_list(pa.uint32()),
        "mask": pa.large_list(pa.bool_()), "score": pa.float32(),
    }  # fmt: skip
    return pa.table({name: pa.array([line[name] for line in lines], kind) for name, kind in types.items()})


def _in_double(batch: PackedBatch) -> PackedBatch:
    return batch.to().map(lambda array: array.double() if array.is_floating_point() else array)


def dummy(rows: Rows) -> PackedBatch:
    """The batch of a rank that has none left, in float64."""
    values = [name for name in ("token_rewards", "user_weights", "ref_logps") if name in rows.columns]
    return _in_double(dummy_batch(values, last_token=rows.whole))


def _filled(rows: Rows, policy: float, ref: float) -> Rows:
    columns = dict(rows.columns)
    if "ref_logps" in columns:
        columns["ref_logps"] = np.full_like(columns["ref_logps"], ref)
    return replace(rows, policy=np.full_like(rows.policy, policy), columns=columns)


def _far(rows: Rows, sign: float) -> Rows:
    """The chosen (or best) response far ahead of the others, or far behind."""
    store = rows.store
    is_first = np.repeat(store.segments == 1, np.diff(store.response_offsets))
    ahead = np.where(is_first, 1.0, -1.0) * sign
    scores = np.where(store.segments == 1, 1.0, -1.0) * sign * 1e4
    return replace(rows, policy=-500.0 + 400.0 * ahead, scores=scores)


def _rewarded(rows: Rows, scale: float) -> Rows:
    if "token_rewards" not in rows.columns:
        return rows
    return replace(rows, columns=rows.columns | {"token_rewards": rows.columns["token_rewards"] * scale})


def _without_weight(rows: Rows) -> Rows:
    """Of the first row no token counts."""
    if rows.whole:
        return rows
    weights = np.ones_like(rows.policy)
    weights[: int(rows.store.response_offsets[rows.store.group_offsets[1]])] = 0.0
    return replace(rows, columns=rows.columns | {"user_weights": weights})


EDGES: dict[str, Callable[[Rows], Rows]] = {
    "log-probs of 0": lambda rows: _filled(rows, 0.0, 0.0),
    "policy as reference": lambda rows: _filled(rows, -2.0, -2.0),
    "log-probs of -1,000": lambda rows: _filled(rows, -1e3, -1.0),
    "chosen far ahead": lambda rows: _far(rows, 1.0),
    "chosen far behind": lambda rows: _far(rows, -1.0),
    "token rewards of 0": lambda rows: _rewarded(rows, 0.0),
    "token rewards of +-100": lambda rows: _rewarded(rows, 100.0),
    "a row without weight": _without_weight,
}
