"""Side work of a training: what watches it without changing it, on disk, on the screen, in the log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.ranks import is_main
from pyprefopt.training.metrics import append_line, drop_lines_after

if TYPE_CHECKING:
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.training.progress import Progress

_SHOWN = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin", "tokens_per_second": "tok/s"}
_EVALUATED = {"eval_loss": "eval loss", "eval_ranking_accuracy": "ranking accuracy"}

logger = logging.getLogger("pyprefopt")


class Callback:
    """A callback watches a training without changing it.

    Its hooks are empty; a subclass fills some. Each is called on every rank that has the callback, in the order of the
    list: `on_start` once, then `on_evaluation` (not where a run goes on), `on_step` and `on_evaluation` in turn, and
    `on_close`. `progress` is to be read, not written. An error in a hook ends the training.

    Example:
        >>> class Steps(Callback):
        ...     def on_step(self, progress, metrics):
        ...         print(progress.step)
        >>> fit(job, callbacks=[Steps()])  # doctest: +SKIP
    """

    def on_start(self, progress: Progress) -> None:
        """The engine stands, a checkpoint loaded into it if there was one.

        Args:
            progress: `step` optimizer steps are done.
        """

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """An optimizer step is done.

        Args:
            progress: the step counted.
            metrics: every `logging_steps` and at the last step, over the steps since the last ones; else None.
        """

    def on_evaluation(self, progress: Progress, metrics: Metrics) -> None:
        """An evaluation is done.

        Args:
            progress: `step` 0 is the evaluation before training.
            metrics: with `eval_` before the names.
        """

    def on_close(self) -> None:
        """The training has ended, well or badly."""


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


class ProgressBar(Callback):
    """A tqdm bar for the stage, a line for each evaluation."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._bar: Any = None
        self._progress: Progress | None = None

    def on_start(self, progress: Progress) -> None:
        """Open the bar, where a resumed run stands."""
        from tqdm import tqdm

        self._bar = tqdm(
            desc=self.stage, total=progress.total_steps, initial=progress.step, unit="step", mininterval=0.5,
            dynamic_ncols=True,
        )  # fmt: skip
        self._progress = progress
        if progress.resumed:
            self._bar.write(f"{self.stage}: goes on from the checkpoint of step {progress.step}")

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """Move the bar; show loss, accuracy, margin and speed."""
        if metrics is not None:
            shown = {short: f"{metrics[name]:.4g}" for name, short in _SHOWN.items() if name in metrics}
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def on_evaluation(self, progress: Progress, metrics: Metrics) -> None:
        """One line above the bar."""
        shown = ", ".join(f"{short} {metrics[name]:.4f}" for name, short in _EVALUATED.items() if name in metrics)
        if shown:
            self._bar.write(f"{self.stage}: step {progress.step}: {shown}")

    def on_close(self) -> None:
        """Leave the bar as it stands, and print how fast it was."""
        if self._bar is None or self._progress is None:
            return
        self._bar.close()
        self._bar = None
        if self._progress.speed is not None:
            print(f"{self.stage}: {self._progress.speed.line()}")


class NegativeWeights(Callback):
    """Warns once where the method weights tokens negatively: such a token is pushed the wrong way."""

    def __init__(self, stage: str) -> None:
        self.stage, self._warned = stage, False

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """Look at the share of negative weights where metrics are due."""
        share = (metrics or {}).get("weights/negative", 0.0)
        if share > 0 and not self._warned:
            self._warned = True
            logger.warning(
                "%s: %.1f %% of the token weights of step %d are negative, which turns those tokens' gradient round; "
                "lower loss.alpha or the scale of the token rewards, or set loss.clamp or loss.shape sigmoid where the "
                "method has it (weights/negative in metrics.jsonl has the share of every step)",
                self.stage,
                100 * share,
                progress.step,
            )


def default_callbacks(stage: str, output_dir: Path) -> list[Callback]:
    """Those of every training: on rank 0, none on the others."""
    if not is_main():
        return []
    return [
        MetricsFile(stage, output_dir / "metrics.jsonl"),
        TensorBoard(output_dir / "tensorboard" / stage),
        ProgressBar(stage),
        NegativeWeights(stage),
    ]
