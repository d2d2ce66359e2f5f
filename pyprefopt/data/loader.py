"""The micro-batches of each optimizer step, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pyprefopt.data.pack import Groups, Packer, dummy_batch
from pyprefopt.errors import check
from pyprefopt.types import PackedBatch

SCAN_GROUPS = 1024  # groups that `scan` packs at a time


@lru_cache(maxsize=2)  # every step of an epoch asks again
def permutation(count: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `count` groups in an epoch, [count] i64.

    The stable argsort of the first `count` raw 64-bit outputs of Philox4x64-10 with key (seed, epoch) and counter 0.
    A bit generator's raw stream is fixed by its algorithm, unlike what `Generator.permutation` makes of it, so the
    order is the same on every machine and for every version of NumPy.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order = np.argsort(raw, kind="stable")
    order.setflags(write=False)
    return order


class StepLoader:
    """Micro-batches by optimizer step, stateless: step k of a run is the same in every run, on every number of ranks.

    Step k takes positions [j B, (j+1) B) of the epoch's permutation, with B = `global_batch_size` (groups), epoch
    k // steps_per_epoch and j = k % steps_per_epoch; the last window of an epoch may be smaller. A window is packed on
    its own; its bin i goes to rank i % world_size, and ranks with fewer bins get a `dummy_batch`, so that all have
    equally many.

    num_groups: use groups 0 .. num_groups - 1; or groups: the indices to use (a subset, for example a hold-out).
    max_tokens, max_groups: bounds of a micro-batch.
    """

    def __init__(
        self,
        packer: Packer,
        *,
        num_groups: int | None = None,
        groups: Groups | None = None,
        global_batch_size: int,
        max_tokens: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        max_groups: int | None = None,
        shuffle: bool = True,
    ) -> None:
        check((num_groups is None) != (groups is None), "num_groups", num_groups, "given, or else `groups`")
        self.subset = np.ascontiguousarray(np.arange(num_groups or 0) if groups is None else groups, np.int64)
        size, top = len(self.subset), packer.num_groups
        check(size > 0, "groups", size, "at least one", "no row is left for this split")
        within = bool(self.subset.min() >= 0 and self.subset.max() < top)
        check(within, "groups", (int(self.subset.min()), int(self.subset.max())), f"indices from 0 to {top - 1}")
        check(len(np.unique(self.subset)) == size, "groups", size, "different indices")
        check(global_batch_size > 0, "global_batch_size", global_batch_size, "> 0")
        check(0 <= rank < world_size, "rank", rank, f"in [0, {world_size})")
        check(0 <= seed < 2**64, "seed", seed, "in [0, 2^64)")
        largest = self.subset[np.argmax(packer.lengths(self.subset))]
        packer.plan(largest[None], max_tokens=max_tokens)  # raises now, not in the middle of the training
        self.packer, self.global_batch_size, self.shuffle, self.seed = packer, global_batch_size, shuffle, seed
        self.rank, self.world_size, self.max_tokens, self.max_groups = rank, world_size, max_tokens, max_groups

    @property
    def num_groups(self) -> int:
        """Groups of one epoch."""
        return len(self.subset)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch, the last partial one counted."""
        return -(-self.num_groups // self.global_batch_size)

    def groups(self, k: int) -> Groups:
        """Group indices of optimizer step k (from 0, over all epochs), in the order of the window."""
        check(k >= 0, "step", k, ">= 0")
        epoch, position = divmod(k, self.steps_per_epoch)
        start = position * self.global_batch_size
        window = slice(start, start + self.global_batch_size)
        if not self.shuffle:
            return self.subset[window]
        return self.subset[permutation(self.num_groups, seed=self.seed, epoch=epoch)[window]]

    def window(self, k: int) -> NDArray[np.uint64]:
        """Input rows of optimizer step k."""
        return self.packer.store.rows[self.groups(k)]

    def step(self, k: int) -> list[PackedBatch]:
        """This rank's micro-batches of optimizer step k, as torch tensors on the CPU; as many on every rank."""
        bins = self._plan(self.groups(k))
        own = self.packer.assemble(bins[self.rank :: self.world_size])
        missing = -(-len(bins) // self.world_size) - len(own)
        return [batch.to("cpu") for batch in own + [self.dummy_batch()] * missing]

    def dummy_batch(self) -> PackedBatch:
        """A batch that counts nothing, with the optional arrays that the packer gives; NumPy."""
        return dummy_batch(self.packer.values)

    def scan(self, *, pad: bool = False) -> Iterator[PackedBatch]:
        """This rank's share of all groups, each once, in order: for scoring and evaluation.

        Windows of SCAN_GROUPS groups are packed one at a time; bin i, counted over all windows, goes to rank
        i % world_size. With `pad`, every rank gets equally many batches, the last of them a `dummy_batch` if need be.
        """
        count = 0
        for start in range(0, self.num_groups, SCAN_GROUPS):
            bins = self._plan(self.subset[start : start + SCAN_GROUPS])
            own = [one for i, one in enumerate(bins, start=count) if i % self.world_size == self.rank]
            count += len(bins)
            yield from (batch.to("cpu") for batch in self.packer.assemble(own))
        if pad and count % self.world_size and self.rank >= count % self.world_size:
            yield self.dummy_batch().to("cpu")

    def _plan(self, groups: Groups) -> list[Groups]:
        return self.packer.plan(groups, max_tokens=self.max_tokens, max_groups=self.max_groups)
