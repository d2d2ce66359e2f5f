"""Side work of a training: what watches it without changing it, on disk, on the screen, in the log."""

from __future__ import annotations

import logging
import os
import socket
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.log import Bar
from pyprefopt.ranks import is_main
from pyprefopt.storage.files import append
from pyprefopt.training.metrics import append_line, drop_lines_after

if TYPE_CHECKING:
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.training.progress import Progress

EVENTS = "events.out.tfevents"
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
    """Writes every metric as a scalar; of an interrupted training, events after the checkpoint are hidden first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file: Path | None = None

    def on_start(self, progress: Progress) -> None:
        """Begin an event file; where the training begins anew, that of an earlier try is removed."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if not progress.resumed:
            for earlier in self.directory.glob(f"{EVENTS}.*"):
                earlier.unlink()
        self._file = self.directory / f"{EVENTS}.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._add(Event(file_version="brain.Event:2"))
        if progress.resumed:
            self._add(Event(step=progress.step + 1, session_log=SessionLog(status=SessionLog.START)))

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """Training metrics under `train/`."""
        self._add_scalars("train", metrics or {}, progress.step)

    def on_evaluation(self, progress: Progress, metrics: Metrics) -> None:
        """Evaluation metrics under `eval/`."""
        self._add_scalars("eval", metrics, progress.step)

    def _add_scalars(self, kind: str, metrics: Metrics, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = {f"{kind}/{name.removeprefix('eval_')}": value for name, value in metrics.items()}
        scalars = (Summary(value=[Summary.Value(tag=tag, simple_value=value)]) for tag, value in values.items())
        self._add(*(Event(step=step, summary=scalar) for scalar in scalars))

    def _add(self, *events: Any) -> None:
        """Append events, at once: torch's own writer has a thread, whose errors are found too late."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        if self._file is not None and events:
            append(self._file, records.getvalue())


class ProgressBar(Callback):
    """A bar for the stage, a line for each evaluation, and how fast it was."""

    def __init__(self, stage: str, *, shown: bool = True) -> None:
        self.stage, self.shown = stage, shown
        self._bar: Bar | None = None
        self._progress: Progress | None = None

    def on_start(self, progress: Progress) -> None:
        """Open the bar, where a resumed run stands."""
        self._bar = Bar(self.stage, progress.total_steps, unit="step", done=progress.step, shown=self.shown)
        self._progress = progress
        if progress.resumed:
            logger.info("%s: goes on from the checkpoint of step %d", self.stage, progress.step)

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """Move the bar; show loss, accuracy, margin and speed."""
        shown = {short: f"{metrics[name]:.4g}" for name, short in _SHOWN.items() if name in metrics} if metrics else {}
        if self._bar is not None:
            self._bar.advance(progress.step - self._bar.done, **shown)

    def on_evaluation(self, progress: Progress, metrics: Metrics) -> None:
        """One line above the bar."""
        shown = ", ".join(f"{short} {metrics[name]:.4f}" for name, short in _EVALUATED.items() if name in metrics)
        if shown:
            logger.info("%s: step %d: %s", self.stage, progress.step, shown)

    def on_close(self) -> None:
        """Leave the bar as it stands, and log how fast it was."""
        if self._bar is None or self._progress is None:
            return
        self._bar.close()
        self._bar = None
        if (speed := self._progress.speed) is not None:
            logger.info("%s: %s", self.stage, speed.line())
            if speed.unknown:
                logger.debug("%s: no MFU: %s", self.stage, speed.unknown)


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


def default_callbacks(stage: str, output_dir: Path, *, progress_bar: bool = True) -> list[Callback]:
    """Those of every training: on rank 0, none on the others."""
    if not is_main():
        return []
    return [
        MetricsFile(stage, output_dir / "metrics.jsonl"),
        TensorBoard(output_dir / "tensorboard" / stage),
        ProgressBar(stage, shown=progress_bar),
        NegativeWeights(stage),
    ]
