"""Evaluation over a whole split, exact for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pyprefopt.ranks import all_rows, all_sum
from pyprefopt.training.metrics import TALLY, Margins, averages, ranking_margins, tally
from pyprefopt.training.step import method_sums
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyprefopt.losses import Method
    from pyprefopt.training.engine import Engine
    from pyprefopt.training.job import Loader
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.types import PackedBatch


class Evaluation(NamedTuple):
    """What a model does on a split."""

    metrics: Metrics
    margins: Margins | None  # None: of candidates, which are no pairs


@torch.no_grad()
def evaluate(
    model: Engine | nn.Module,
    method: Method,
    loader: Loader | None,
    ranking: Loader | None = None,
    *,
    name: str = "eval",
) -> Evaluation:
    """Evaluate a model over a whole split, as global sums over global counts.

    Every rank calls this. Ranking accuracy is the share of pairs whose chosen response has the higher mean log-prob
    over all its tokens (of a reward model: the higher score), a tie counts 1/2.

    Args:
        model: an engine, or a model that maps a PackedBatch to log-probs [M] or Outputs.
        method: gives losses and rewards.
        loader: the split as the method reads it; None: without its metrics.
        ranking: the same pairs without selection; None: without ranking accuracy.
        name: of the split, which stands before the names of its metrics.

    Returns:
        `eval_loss`, `eval_rewards/*`, `eval_logps/*` (nats) over `loader`, and `eval_ranking_accuracy` over `ranking`,
        the same on every rank; and the margins of every pair.
    """
    device = getattr(model, "device", None) or next(model.parameters()).device  # type: ignore[union-attr]
    metrics: Metrics = {}
    margins: dict[str, list[Tensor]] = {"reward": [], "ranking": []}  # [pairs, row and margin], of this rank
    training = model.training
    model.train(False)

    def total(source: Loader, size: int, counts: Callable[[PackedBatch], Tensor]) -> Tensor:
        sums = torch.zeros(size, dtype=torch.float64, device=device)
        for batch in source.scan(pad=True):
            sums += counts(batch.to(device))
        return all_sum(sums).cpu()

    def note(kind: str, batch: PackedBatch, differences: Tensor) -> None:
        if batch.pair_chosen.numel():
            rows = batch.response_row[batch.pair_chosen].double()
            margins[kind].append(torch.stack([rows, differences.double()], dim=1))

    def method_counts(batch: PackedBatch) -> Tensor:
        outputs = Outputs.of(model(batch))
        sums = method_sums(method, batch, outputs)
        losses, rewards = method.loss(sums, batch), method.rewards(sums, batch)
        note("reward", batch, rewards[batch.pair_chosen] - rewards[batch.pair_rejected])
        return tally(method, batch, losses, rewards, outputs, sums.weights)

    def ranking_counts(batch: PackedBatch) -> Tensor:
        differences = ranking_margins(batch, model(batch))
        note("ranking", batch, differences)
        return torch.stack([((differences.sign() + 1) / 2).sum(), differences.new_tensor(differences.numel())])

    if loader is not None:
        means = averages(total(loader, len(TALLY), method_counts))
        metrics |= {f"{name}_{metric}": value for metric, value in means.items()}
    if ranking is not None:
        right, pairs = total(ranking, 2, ranking_counts).tolist()
        metrics |= {f"{name}_ranking_accuracy": right / pairs} if pairs else {}
    model.train(training)
    none = torch.zeros(0, 2, dtype=torch.float64, device=device)
    return Evaluation(metrics, _margins(**{kind: all_rows(torch.cat([none, *own])) for kind, own in margins.items()}))


def _margins(reward: Tensor, ranking: Tensor) -> Margins | None:
    """Both margins of each pair, by row."""
    rows = np.union1d(*(found[:, 0].cpu().numpy().astype(np.int64) for found in (reward, ranking)))
    if not len(rows):
        return None
    columns = []
    for found in (reward, ranking):
        column = np.full(len(rows), np.nan)
        column[np.searchsorted(rows, found[:, 0].cpu().numpy().astype(np.int64))] = found[:, 1].cpu().numpy()
        columns.append(column)
    return Margins(rows, *columns)
