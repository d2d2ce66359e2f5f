"""A small model, small pairs and a loader with StepLoader's interface, on the packer's slow twin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprefopt.types import PackedBatch
from tests.reference.packing import Group, Response, pack_groups

VOCABULARY = 29


class ToyModel(nn.Module):
    """Log-prob of a token from the mean embedding of its segment so far: [M] from a batch, as LogpsModel."""

    def __init__(self, seed: int = 0, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.dropout = dropout
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, batch: PackedBatch) -> Tensor:
        hidden = self.embedding(batch.input_ids)
        hidden = hidden + torch.tanh(hidden.roll(1, 0)) * (batch.position_ids > 0)[:, None]
        hidden = F.dropout(hidden, self.dropout, self.training)
        logits = self.head(self.norm(hidden)[batch.hidden_index]).float()
        return F.log_softmax(logits, -1).gather(1, batch.target_ids[:, None])[:, 0]


def make_groups(count: int, seed: int = 0, single: bool = False) -> list[Group]:
    """Pairs whose chosen responses prefer low ids; with `single` one response a prompt."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(low, high, rng.integers(3, 10)).tolist()

    groups = []
    for row in range(count):
        kinds = [("response", (0, 20))] if single else [("chosen", (0, 20)), ("rejected", (9, VOCABULARY))]
        responses = [Response(ids(*span), kind=kind) for kind, span in kinds]
        groups.append(Group(ids(0, VOCABULARY), responses, row=row))
    return groups


def with_ref_logps(groups: list[Group], model: nn.Module) -> list[Group]:
    """The groups with `ref_logps` under `model`, as the stages store them."""
    for group in groups:
        with torch.no_grad():
            logps = model(pack_groups([group]).to()).tolist()
        for response in group.responses:
            response.values["ref_logps"], logps = logps[: len(response.ids)], logps[len(response.ids) :]
    return groups


def dummy_like(batch: PackedBatch) -> PackedBatch:
    """A batch that scores nothing: one response of one token, masked, no pair."""
    dummy = pack_groups([Group([0], [Response([0], kind="response")], row=-1)])
    values = {
        n: np.zeros(1, np.float32)
        for n in ("token_rewards", "user_weights", "ref_logps")
        if getattr(batch, n) is not None
    }
    arrays = {**dummy.__dict__, "token_mask": np.zeros(1, np.float32), **values}
    return PackedBatch(**arrays)


class ToyLoader:
    """StepLoader's interface; `per_batch` pairs a micro-batch, the last ones smaller."""

    def __init__(
        self, groups: list[Group], *, batch: int, per_batch: int, rank: int = 0, world: int = 1, seed: int = 0
    ) -> None:
        self.groups, self.batch, self.per_batch = groups, batch, per_batch
        self.rank, self.world, self.seed = rank, world, seed
        self.steps_per_epoch = -(-len(groups) // batch)
        self.asked: list[int] = []

    def window(self, k: int) -> list[int]:
        epoch, within = divmod(k, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups)).tolist()
        return order[within * self.batch : (within + 1) * self.batch]

    def step(self, k: int) -> list[PackedBatch]:
        self.asked.append(k)
        return self._bins(self.window(k), pad=True)

    def scan(self, pad: bool = True) -> Iterator[PackedBatch]:
        yield from self._bins(range(len(self.groups)), pad)

    def _bins(self, rows: list[int] | range, pad: bool) -> list[PackedBatch]:
        size = self.per_batch
        bins = [pack_groups([self.groups[r] for r in rows[i : i + size]]) for i in range(0, len(rows), size)]
        mine = bins[self.rank :: self.world]
        if pad and len(mine) < -(-len(bins) // self.world):
            mine.append(dummy_like(bins[0]))
        return [batch.to() for batch in mine]
