"""What a training is given and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, SupportsInt

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyprefopt.losses import Method
    from pyprefopt.settings.config import OptimConfig, RunConfig
    from pyprefopt.training.metrics import Margins, Metrics
    from pyprefopt.types import PackedBatch


class Loader(Protocol):
    """What the trainer asks of `data.loader.StepLoader`."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""

    def step(self, k: int) -> list[PackedBatch]:
        """This rank's micro-batches of optimizer step k (from 0), as many on every rank."""

    def window(self, k: int) -> Iterable[SupportsInt]:
        """The input rows of step k, the same on every rank."""

    def scan(self, *, pad: bool = True) -> Iterator[PackedBatch]:
        """This rank's micro-batches over the whole set in order; with `pad` as many on every rank."""


class HeldOut(NamedTuple):
    """Rows that a model is tested on."""

    loader: Loader | None  # as the method reads them; None: without the method's metrics
    ranking: Loader | None = None  # the same rows without selection, for the ranking accuracy


@dataclass(frozen=True)
class Job:
    """One training: `model` maps a PackedBatch to log-probs [M] or Outputs, `train` and `eval` bring the rest."""

    stage: str
    model: nn.Module
    method: Method
    train: Loader
    optim: OptimConfig
    run: RunConfig
    directory: Path  # the stage's; checkpoints/ is made in it
    key: str  # the stage's; a checkpoint of another key is never resumed
    tests: Mapping[str, HeldOut] = field(default_factory=dict)  # by name; before, after and every run.eval_steps

    @property
    def output_dir(self) -> Path:
        """Where metrics.jsonl and tensorboard/ are: the run's directory, or the stage's where the run has none."""
        return Path(self.run.output_dir) if self.run.output_dir else self.directory


@dataclass(frozen=True)
class FitResult:
    """What a training leaves behind. `weights` are on the CPU, on rank 0 only; whole also under ZeRO-3."""

    steps: int  # optimizer steps done, those before a resume included
    metrics: Metrics  # the last logged training metrics
    eval_before: Metrics
    eval_after: Metrics
    weights: dict[str, Tensor] | None
    peak_memory: int  # bytes: device memory on a GPU, else the process's resident set
    seconds: float  # of this call; a resumed training took longer
    moving_loss: float = math.nan  # mean training loss of the last `convergence_window` steps
    converged: bool = False  # whether that was below `until_converged`, and ended the training
    margins: Mapping[str, Margins] = field(default_factory=dict)  # test set of pairs -> what each got in the end
