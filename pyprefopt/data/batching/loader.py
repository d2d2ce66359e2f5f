"""The micro-batches of each optimizer step, the same for any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyprefopt.data.batching.packing import Bins, Groups, Packer, dummy_batch
from pyprefopt.data.shuffling import permutation
from pyprefopt.errors import ArtifactError, check, check_number
from pyprefopt.types import PackedBatch

SCAN_BINS = 16  # micro-batches that `scan` assembles at a time, in parallel
STATE_VERSION = 1


class StepLoader:
    """A StepLoader gives the micro-batches of step k, the same in every run and on every number of ranks.

    `step(k)` needs no step before it. A `for` over the loader gives the steps of `num_epochs` epochs, `len` of them;
    the next `for` goes on with the next epochs. Where it is, is a single number, which `state_dict` and
    `load_state_dict` bring from one process to another.

    Step k takes positions [j B, (j+1) B) of the epoch's permutation, with B = `global_batch_size` (groups), epoch
    k // steps_per_epoch and j = k % steps_per_epoch; the last window of an epoch may be smaller. A window is packed on
    its own; its bin i goes to rank i % world_size, and ranks with fewer bins get a `dummy_batch`, so that all have
    equally many.

    Args:
        packer: of the groups.
        groups: i64 indices of the groups to use (a subset, for example a hold-out); None: all of the packer's.
        global_batch_size: groups of one optimizer step, over all ranks.
        max_tokens: most input tokens of a micro-batch.
        seed: of the permutations, in [0, 2^64).
        num_epochs: passes over the groups that a `for` makes.
        rank: of this process.
        world_size: number of processes.
        max_groups: most groups of a micro-batch; None: no limit.
        shuffle: False: groups come in their own order in every epoch.

    Raises:
        ConfigError: a setting breaks its rule.
        DataError: a group is larger than `max_tokens`.

    Example:
        >>> loader = StepLoader(Packer(segments), global_batch_size=32, max_tokens=4096, seed=0)
        >>> for batches in loader:  # this rank's PackedBatches of one step, torch tensors on the CPU
        ...     train(batches)
    """

    def __init__(
        self,
        packer: Packer,
        *,
        groups: Groups | None = None,
        global_batch_size: int,
        max_tokens: int,
        seed: int,
        num_epochs: int = 1,
        rank: int = 0,
        world_size: int = 1,
        max_groups: int | None = None,
        shuffle: bool = True,
    ) -> None:
        check(isinstance(packer, Packer), "packer", type(packer).__name__, "a Packer", "write Packer(segments)")
        self.subset = np.ascontiguousarray(np.arange(packer.num_groups) if groups is None else groups, np.int64)
        size, top = len(self.subset), packer.num_groups
        check(size > 0, "groups", size, "at least one", "no row is left for this split")
        within = bool(self.subset.min() >= 0 and self.subset.max() < top)
        check(within, "groups", (int(self.subset.min()), int(self.subset.max())), f"indices from 0 to {top - 1}")
        check(len(np.unique(self.subset)) == size, "groups", size, "different indices")
        whole = {"global_batch_size": global_batch_size, "seed": seed, "num_epochs": num_epochs}
        whole |= {"rank": rank, "world_size": world_size}
        for name, value in whole.items():
            check_number(name, value, whole=True)
        check(global_batch_size > 0, "global_batch_size", global_batch_size, "> 0")
        check(num_epochs > 0, "num_epochs", num_epochs, "> 0")
        check(0 <= rank < world_size, "rank", rank, f"in [0, {world_size})")
        check(0 <= seed < 2**64, "seed", seed, "in [0, 2^64)")
        largest = self.subset[np.argmax(packer.lengths(self.subset))]
        packer.plan(largest[None], max_tokens=max_tokens)  # raises now, not in the middle of the training
        self.packer, self.global_batch_size, self.shuffle, self.seed = packer, global_batch_size, shuffle, seed
        self.num_epochs = num_epochs
        self.rank, self.world_size, self.max_tokens, self.max_groups = rank, world_size, max_tokens, max_groups
        self.next_step = 0

    @property
    def num_groups(self) -> int:
        """Groups of one epoch."""
        return len(self.subset)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch, the last partial one counted."""
        return -(-self.num_groups // self.global_batch_size)

    def groups(self, k: int) -> Groups:
        """List the groups of optimizer step k (from 0, over all epochs): i64 indices in the order of the window."""
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
        """Assemble this rank's micro-batches of one optimizer step.

        Args:
            k: the step, from 0, over all epochs.

        Returns:
            Batches of torch tensors on the CPU, as many on every rank.
        """
        bins = self._plan(self.groups(k))
        own = self.packer.assemble(bins[self.rank :: self.world_size])
        missing = -(-len(bins) // self.world_size) - len(own)
        return [batch.to("cpu") for batch in own + [self.dummy_batch()] * missing]

    def dummy_batch(self) -> PackedBatch:
        """A batch that counts nothing, with the optional arrays that the packer gives; NumPy."""
        return dummy_batch(self.packer.values, last_token=self.packer.last_token)

    def scan(self, *, pad: bool = False) -> Iterator[PackedBatch]:
        """This rank's share of all groups, each once, packed as one whole: for scoring, evaluation and benchmarks.

        Bins are those of `Packer.plan` over the whole set; bin i goes to rank i % world_size. With `pad`, every rank
        gets equally many batches, the last of them a `dummy_batch` if need be.
        """
        bins = self._plan(self.subset)
        own = range(self.rank, len(bins), self.world_size)
        for start in range(0, len(own), SCAN_BINS):
            yield from (
                batch.to("cpu") for batch in self.packer.assemble([bins[i] for i in own[start : start + SCAN_BINS]])
            )
        if pad and len(own) < -(-len(bins) // self.world_size):
            yield self.dummy_batch().to("cpu")

    def __len__(self) -> int:
        """Steps of `num_epochs` epochs."""
        return self.num_epochs * self.steps_per_epoch

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        """This rank's micro-batches of one step after another, from `next_step` to the end of the `num_epochs` epochs.

        `next_step` counts a step when the one after it is asked for, so a step that was interrupted comes again. After
        the last one the next `for` goes on with the `num_epochs` epochs that follow, in their own order.
        """
        end = (self.next_step // len(self) + 1) * len(self)
        while self.next_step < end:
            yield self.step(self.next_step)
            self.next_step += 1

    def state_dict(self) -> dict[str, Any]:
        """Where `__iter__` is, and what the steps are made of; of one size whatever the data, and JSON.

        Ranks, `max_tokens` and `max_groups` are not in it: the steps hold the same groups whatever they are.
        """
        return {"version": STATE_VERSION, "step": self.next_step} | self._window_settings

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: a number is set, nothing is read again.

        Raises:
            ArtifactError: this loader differs from the one that was saved; names each setting.
        """
        wanted = {"version": STATE_VERSION} | self._window_settings
        missing, unknown = sorted({*wanted, "step"} - set(state)), sorted(set(state) - {*wanted, "step"})
        if missing or unknown:
            raise ArtifactError(
                f"a loader's state must have what state_dict() gives, but {missing} are missing and {unknown} are "
                "unknown"
            )
        differ = [
            f"{name} was {state[name]!r} and is {wanted[name]!r}" for name in wanted if state[name] != wanted[name]
        ]
        if differ:
            raise ArtifactError(
                f"the loader's state was saved with other settings: {'; '.join(differ)}; its steps would hold other "
                "rows, so give the same settings and data, or begin at step 0"
            )
        check(type(state["step"]) is int and state["step"] >= 0, "step", state["step"], "an integer >= 0")
        self.next_step = state["step"]

    @cached_property
    def _window_settings(self) -> dict[str, Any]:
        groups = hashlib.sha256(self.subset.astype("<i8").tobytes()).hexdigest()
        return {
            "store": self.packer.store.fingerprint,
            "groups": groups,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def _plan(self, groups: Groups) -> Bins:
        return self.packer.plan(groups, max_tokens=self.max_tokens, max_groups=self.max_groups)
