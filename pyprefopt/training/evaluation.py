"""Evaluation over a whole split, exact for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pyprefopt.ranks import all_sum
from pyprefopt.training.metrics import TALLY, averages, ranking_tally, tally
from pyprefopt.training.step import method_sums
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyprefopt.losses import Method
    from pyprefopt.training.engine import Engine
    from pyprefopt.training.job import Loader
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.types import PackedBatch


@torch.no_grad()
def evaluate(
    model: Engine | nn.Module, method: Method, loader: Loader | None, ranking: Loader | None = None
) -> Metrics:
    """Evaluate a model over a whole split, as global sums over global counts.

    Every rank calls this. Ranking accuracy is the share of pairs whose chosen response has the higher mean log-prob
    over all its tokens (of a reward model: the higher score), a tie counts 1/2.

    Args:
        model: an engine, or a model that maps a PackedBatch to log-probs [M] or Outputs.
        method: gives losses and rewards.
        loader: the split as the method reads it; None: without its metrics.
        ranking: the same pairs without selection; None: without ranking accuracy.

    Returns:
        `eval_loss`, `eval_rewards/*`, `eval_logps/*` (nats) over `loader`, and `eval_ranking_accuracy` over `ranking`,
        the same on every rank.
    """
    device = getattr(model, "device", None) or next(model.parameters()).device  # type: ignore[union-attr]
    metrics: Metrics = {}
    training = model.training
    model.train(False)

    def total(source: Loader, size: int, counts: Callable[[PackedBatch], Tensor]) -> Tensor:
        sums = torch.zeros(size, dtype=torch.float64, device=device)
        for batch in source.scan(pad=True):
            sums += counts(batch.to(device))
        return all_sum(sums).cpu()

    def method_counts(batch: PackedBatch) -> Tensor:
        outputs = Outputs.of(model(batch))
        sums = method_sums(method, batch, outputs)
        losses, rewards = method.loss(sums, batch), method.rewards(sums, batch)
        return tally(method, batch, losses, rewards, outputs, sums.weights)

    if loader is not None:
        means = averages(total(loader, len(TALLY), method_counts))
        metrics |= {f"eval_{name}": value for name, value in means.items()}
    if ranking is not None:
        right, pairs = total(ranking, 2, lambda batch: ranking_tally(batch, model(batch))).tolist()
        metrics |= {"eval_ranking_accuracy": right / pairs} if pairs else {}
    model.train(training)
    return metrics
