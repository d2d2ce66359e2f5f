"""The progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyprefopt.training.callbacks.base import Callback

if TYPE_CHECKING:
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.training.progress import Progress

_SHOWN = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin", "tokens_per_second": "tok/s"}
_EVALUATED = {"eval_loss": "eval loss", "eval_ranking_accuracy": "ranking accuracy"}


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
        """Leave the bar as it stands, and say how fast it was."""
        if self._bar is None or self._progress is None:
            return
        self._bar.close()
        self._bar = None
        if self._progress.speed is not None:
            print(f"{self.stage}: {self._progress.speed.line()}")
