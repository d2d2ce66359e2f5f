"""The hooks that a callback may fill."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.training.progress import Progress


class Callback:
    """Hooks of a training, all empty; they are called on every rank that was given the callback."""

    def on_start(self, progress: Progress) -> None:
        """The engine stands, a checkpoint has been loaded if there was one; `progress.step` steps are done."""

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """An optimizer step is done; `metrics` every `logging_steps` and at the last one, else None."""

    def on_evaluation(self, progress: Progress, metrics: Metrics) -> None:
        """An evaluation is done, `metrics` with `eval_` before the names; step 0 is the one before training."""

    def on_close(self) -> None:
        """The training has ended, well or badly."""
