"""Which positions of a packed micro-batch attend to which: integers, and what the kernels want to know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch

from pyprefopt.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch

T = TypeVar("T")


class Pack(NamedTuple):
    """What a model reads of a PackedBatch."""

    input_ids: Tensor
    position_ids: Tensor
    segment_offsets: Tensor
    segment_parent: Tensor


@dataclass(frozen=True)
class Run:
    """Neighbouring queries that attend in one call: to `parent` (may be empty), then causally to themselves."""

    start: int  # first query, position in [0, N)
    stop: int
    parent_start: int = 0  # the keys that stand before the run's own; empty where both are equal
    parent_stop: int = 0

    @property
    def keys(self) -> int:
        """How many keys the run's last query sees."""
        return self.stop - self.start + self.parent_stop - self.parent_start


@dataclass(frozen=True)
class Rule:
    """One layer's attention: softmax of cap(scaling * q k') over the positions that the window lets through."""

    scaling: float
    window: int | None = None  # position i sees i - window < j <= i of its own document
    softcap: float | None = None  # cap * tanh(score / cap)
    chunk: int | None = None  # position i sees those of its own document with the same j // chunk
    sinks: bool = False  # a score beside those of the positions takes a share of each head's attention


@dataclass(frozen=True)
class PackedLayout:
    """The documents of a micro-batch as plain integers, read from the device once a forward, not once a layer."""

    runs: tuple[Run, ...]  # in order, without a gap: they cover [0, N)
    size: int  # N
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # for the layers that follow

    @classmethod
    def of(cls, batch: PackedBatch | Pack) -> PackedLayout:
        """The layout of `batch`; DataError where offsets or parents break their rule."""
        return cls.build(batch.segment_offsets.tolist(), batch.segment_parent.tolist(), len(batch.input_ids))

    @classmethod
    def build(cls, offsets: list[int], parents: list[int], size: int) -> PackedLayout:
        """From segment offsets [S+1], parents [S] and N. A response right behind its prompt joins the prompt's run."""
        _check_segments(offsets, parents, size)
        runs: list[Run] = []
        for segment, parent in enumerate(parents):
            start, stop = offsets[segment], offsets[segment + 1]
            if start == stop:
                continue
            if parent < 0:
                runs.append(Run(start, stop))
            elif offsets[parent] < offsets[parent + 1] == start:
                runs[-1] = Run(offsets[parent], stop)  # the parent is the run just before
            else:
                runs.append(Run(start, stop, offsets[parent], offsets[parent + 1]))
        return cls(tuple(runs), size)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` gives, made by the first layer that asks for `key` and kept for the others."""
        if key not in self._made:
            self._made[key] = make()
        return cast("T", self._made[key])

    def documents(self, device: torch.device) -> Documents:
        """The runs as a kernel for whole documents takes them, on `device`; made once."""
        return self.once(("documents", device), lambda: Documents.of(self.runs, device))


@dataclass(frozen=True)
class Documents:
    """Runs as documents with queries and keys of their own, whose ends are aligned: a lower-right causal rule.

    Where a run sees a parent, its keys are the parent's and then its own, gathered by `gather`; so a prompt's keys
    stand once for each response that does not directly follow it.
    """

    query_offsets: Tensor  # [documents + 1] i32
    key_offsets: Tensor  # [documents + 1] i32; the same tensor as query_offsets where no run has a parent
    longest_query: int
    longest_key: int
    gather: Tensor | None  # [keys] i64, positions in [0, N); None: the keys are the pack's own

    @classmethod
    def of(cls, runs: tuple[Run, ...], device: torch.device) -> Documents:
        """The documents of `runs`."""
        lengths, keys = [run.stop - run.start for run in runs], [run.keys for run in runs]
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        if lengths == keys:
            return cls(offsets, offsets, max(lengths), max(keys), None)
        ranges = [r for run in runs for r in ((run.parent_start, run.parent_stop), (run.start, run.stop))]
        gather = torch.cat([torch.arange(*r) for r in ranges]).to(device)
        key_offsets = torch.tensor([0, *accumulate(keys)], dtype=torch.int32, device=device)
        return cls(offsets, key_offsets, max(lengths), max(keys), gather)


def _check_segments(offsets: list[int], parents: list[int], size: int) -> None:
    covered = bool(offsets) and offsets[0] == 0 and offsets[-1] == size
    if not covered or any(b < a for a, b in pairwise(offsets)):
        raise DataError(f"segment_offsets must rise from 0 to the number of input tokens ({size}), got {offsets}")
    if len(parents) != len(offsets) - 1:
        raise DataError(f"segment_parent must have one entry a segment ({len(offsets) - 1}), got {len(parents)}")
    for segment, parent in enumerate(parents):
        if parent >= 0 and (parent >= segment or parents[parent] >= 0):
            raise DataError(f"segment_parent[{segment}] must be -1 or an earlier segment without parent, got {parent}")
