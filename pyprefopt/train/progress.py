"""Where a training stands: all that a checkpoint must know besides weights, optimizer and random states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyprefopt.train.metrics import TALLY, averages

Metrics = dict[str, float]


@dataclass
class Progress:
    """Steps done, tokens seen, evaluations; `pending` is the tally of the steps since the last logged line."""

    total_steps: int
    steps_per_epoch: int
    step: int = 0  # optimizer steps done
    num_tokens: int = 0  # input tokens so far, over all ranks
    num_scored_tokens: int = 0  # of those that the loss could weight
    eval_before: Metrics = field(default_factory=dict)
    eval_last: Metrics = field(default_factory=dict)
    eval_step: int = -1  # the step of `eval_last`
    last: Metrics = field(default_factory=dict)  # the last logged training metrics
    pending: list[float] = field(default_factory=lambda: [0.0] * len(TALLY))
    resumed: bool = False

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return self.step / self.steps_per_epoch

    def advance(self, totals: Tensor) -> None:
        """Count a step whose global tally is `totals`."""
        self.step += 1
        self.pending = (torch.tensor(self.pending, dtype=torch.float64) + totals).tolist()
        self.num_tokens += int(totals[TALLY.index("num_tokens")])
        self.num_scored_tokens += int(totals[TALLY.index("num_scored_tokens")])

    def flush(self) -> Metrics:
        """Means over the steps since the last call, with the tokens so far."""
        means = averages(torch.tensor(self.pending, dtype=torch.float64))
        self.pending = [0.0] * len(TALLY)
        return means | {"num_tokens": self.num_tokens, "num_scored_tokens": self.num_scored_tokens}

    def evaluated(self, metrics: Metrics) -> None:
        """Remember an evaluation at the present step."""
        self.eval_last, self.eval_step = metrics, self.step
        if self.step == 0:
            self.eval_before = metrics

    def score(self) -> float | None:
        """How good the present weights are, higher is better: ranking accuracy, else minus the evaluation loss."""
        if self.eval_step != self.step or not self.eval_last:
            return None
        return self.eval_last.get("eval_ranking_accuracy", -self.eval_last.get("eval_loss", float("inf")))

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores, as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "resumed"}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the `state` of a checkpoint."""
        for name, value in state.items():
            if name not in ("total_steps", "steps_per_epoch"):
                setattr(self, name, value)
        self.resumed = True
