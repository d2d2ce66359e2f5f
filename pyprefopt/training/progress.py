"""Where a training stands: all that a checkpoint must know besides weights, optimizer and random states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyprefopt.training.metrics import TALLY, Metrics, averages
from pyprefopt.training.throughput import Throughput

_OWN = (
    "total_steps",
    "steps_per_epoch",
    "until_converged",
    "window",
    "resumed",
    "saved",
    "speed",
)  # of this run, not the checkpoint


@dataclass
class Progress:
    """Steps done, tokens seen, evaluations; `pending` is the tally of the steps since the last logged line."""

    total_steps: int
    steps_per_epoch: int
    until_converged: float | None = None  # end once `moving_loss` is below this
    window: int = 1  # steps of `moving_loss`
    resumed: bool = False
    speed: Throughput | None = None  # of the steps of this process
    saved: int = 0  # the step of the last checkpoint; 0: there is none
    step: int = 0  # optimizer steps done
    num_tokens: int = 0  # input tokens so far, over all ranks
    num_scored_tokens: int = 0  # tokens so far that the method could weight
    num_weightless: int = 0  # groups so far without such a token
    pending: list[float] = field(default_factory=lambda: [0.0] * len(TALLY))
    recent: list[float] = field(default_factory=list)  # losses of the last `window` steps
    now: Metrics = field(default_factory=dict)  # values of the last step that are no means
    last: Metrics = field(default_factory=dict)  # the last logged training metrics
    eval_before: Metrics = field(default_factory=dict)
    eval_last: Metrics = field(default_factory=dict)
    eval_step: int = -1  # the step of `eval_last`

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return self.step / self.steps_per_epoch

    @property
    def moving_loss(self) -> float:
        """Mean loss of the last `window` steps, or of all where there are fewer."""
        return math.fsum(self.recent) / len(self.recent) if self.recent else math.nan

    @property
    def converged(self) -> bool:
        """Whether a whole window's mean loss is below `until_converged`; the same on every rank, as the losses are."""
        full = len(self.recent) == self.window
        return full and self.until_converged is not None and self.moving_loss < self.until_converged

    @property
    def done(self) -> bool:
        """Whether no step is left to do."""
        return self.step >= self.total_steps or self.converged

    def due(self, every: int) -> bool:
        """Every so many steps (0: never), and always at the last one."""
        return self.done or bool(every and self.step % every == 0)

    def advance(self, totals: Tensor, grad_norm: float, learning_rate: float, rates: Metrics) -> None:
        """Count a step whose global tally is `totals`; `grad_norm` is before clipping, `rates` how fast it was."""
        tokens = int(totals[TALLY.index("num_tokens")])
        self.step += 1
        self.pending = (torch.tensor(self.pending, dtype=torch.float64) + totals).tolist()
        self.recent = [*self.recent, averages(totals)["loss"]][-self.window :]
        self.num_tokens += tokens
        self.num_scored_tokens += int(totals[TALLY.index("num_scored_tokens")])
        self.num_weightless += int(totals[TALLY.index("num_weightless")])
        self.now = {"grad_norm": grad_norm, "learning_rate": learning_rate, **rates}

    def flush(self) -> Metrics:
        """Metrics of the steps since the last call: means over all of them, tokens since the start, the last step's."""
        means = averages(torch.tensor(self.pending, dtype=torch.float64))
        self.pending = [0.0] * len(TALLY)
        counts = ("num_tokens", "num_scored_tokens", "num_weightless")
        self.last = means | {name: getattr(self, name) for name in counts} | self.now
        return self.last

    def evaluated(self, metrics: Metrics) -> None:
        """Remember an evaluation at the present step."""
        self.eval_last, self.eval_step = metrics, self.step
        if self.step == 0:
            self.eval_before = metrics

    def score(self) -> float | None:
        """How good the present weights are, higher is better: ranking accuracy, else minus the evaluation loss."""
        if self.eval_step != self.step:
            return None
        score = self.eval_last.get("eval_ranking_accuracy", -self.eval_last.get("eval_loss", math.nan))
        return score if math.isfinite(score) else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores, as JSON."""
        return {name: value for name, value in asdict(self).items() if name not in _OWN}

    @classmethod
    def is_state(cls, state: Mapping[str, Any]) -> bool:
        """Whether `state` has given this, by its names and types."""
        fresh = cls(total_steps=1, steps_per_epoch=1).state()
        if state.keys() != fresh.keys() or len(state["pending"]) != len(TALLY):
            return False
        return all(type(state[name]) is type(value) and _holds_numbers(state[name]) for name, value in fresh.items())

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take up the `state` of a checkpoint, where there is one."""
        for name, value in (state or {}).items():
            setattr(self, name, value)
        self.resumed, self.saved = state is not None, self.step


def _holds_numbers(value: Any) -> bool:
    """Whether all parts of a list or mapping are numbers; True is none."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(type(part) in (int, float) for part in parts)
