"""Metrics on disk: `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.training.callbacks.base import Callback
from pyprefopt.training.metrics import append_line, drop_lines_after

if TYPE_CHECKING:
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.training.progress import Progress


class MetricsFile(Callback):
    """Appends to the run's `metrics.jsonl`; of an interrupted run, lines after the checkpoint are dropped first."""

    def __init__(self, stage: str, path: Path) -> None:
        self.stage, self.path = stage, path

    def on_start(self, progress: Progress) -> None:
        """Drop what this stage wrote after the step that training goes on from."""
        drop_lines_after(self.path, self.stage, progress.step if progress.resumed else -1)

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """One line of training metrics."""
        if metrics is not None:
            self._append(progress, metrics)

    def on_evaluation(self, progress: Progress, metrics: Metrics) -> None:
        """One line of `eval_` metrics."""
        self._append(progress, metrics)

    def _append(self, progress: Progress, metrics: Metrics) -> None:
        append_line(self.path, {"stage": self.stage, "step": progress.step, "epoch": progress.epoch, **metrics})


class TensorBoard(Callback):
    """Writes every metric as a scalar; a resumed run hides the events after its checkpoint."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writer: Any = None

    def on_start(self, progress: Progress) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.directory), purge_step=progress.step + 1 if progress.resumed else 0)

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """Training metrics under `train/`."""
        for name, value in (metrics or {}).items():
            self._writer.add_scalar(f"train/{name}", value, progress.step)

    def on_evaluation(self, progress: Progress, metrics: Metrics) -> None:
        """Evaluation metrics under `eval/`."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"eval/{name.removeprefix('eval_')}", value, progress.step)

    def on_close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
