"""The training loop: any method, any stage. It never asks which method it runs."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyprefopt.errors import TrainingError, agreeing, counted
from pyprefopt.modeling.cost import count_flops
from pyprefopt.ranks import any_rank, is_main, runner_has_ended
from pyprefopt.training.callbacks import Callback, default_callbacks
from pyprefopt.training.checkpoint import CheckpointStore, seed_rng
from pyprefopt.training.engine import Engine
from pyprefopt.training.evaluation import Evaluation, evaluate
from pyprefopt.training.job import FitResult, HeldOut, Job, Loader
from pyprefopt.training.metrics import Margins
from pyprefopt.training.progress import Progress
from pyprefopt.training.schedule import learning_rate, total_steps
from pyprefopt.training.step import accumulate, require_finite_gradient
from pyprefopt.training.throughput import Throughput, peak_tflops
from pyprefopt.training.usage import peak_memory

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["FitResult", "HeldOut", "Job", "Loader", "evaluate", "fit", "peak_memory"]
ONE_STROKE = 0.5  # seconds within which a launcher passes on what the terminal has sent already

logger = logging.getLogger(__name__)


def fit(job: Job, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Train `job.model` in place, or go on from the stage's last checkpoint.

    Every rank calls this.

    Args:
        job: the model, its method, the data and the settings.
        callbacks: further ones, behind those that write metrics, draw the progress bar and warn.

    Returns:
        What the training leaves behind: metrics, evaluations, and on rank 0 the weights on the CPU.

    Raises:
        TrainingError: the loss or gradient is not finite (nothing is updated or saved), or SIGTERM or Ctrl-C came (the
            step is finished and a checkpoint written).
        KeyboardInterrupt: Ctrl-C came a second time; it names what is lost.
        DataError: a step has nothing to average the loss over, or a batch does not have what the method needs.
        ArtifactError: a checkpoint of another number of ranks or ZeRO stage.
    """
    started, run = time.monotonic(), job.run
    steps, optim = job.train.steps_per_epoch, job.optim
    progress = Progress(total_steps(optim, steps), steps, optim.until_converged, optim.convergence_window)
    flops = count_flops(job.model)  # while its weights are whole
    store = CheckpointStore(job.directory / "checkpoints", job.key, run.zero_stage, run.save_total_limit)
    watchers = [*default_callbacks(job.stage, job.output_dir, progress_bar=run.progress_bar), *callbacks]
    seed_rng(run.seed)  # a checkpoint brings its own states
    with _engine(job, watchers) as engine, _stop_signals(job.stage) as stop, _naming_what_is_lost(job, progress):
        progress.speed = speed = Throughput(flops, peak_tflops(run, engine.device))
        progress.restore(store.resume(engine, Progress.is_state))
        for watcher in watchers:
            watcher.on_start(progress)
        margins: dict[str, Margins] | None = None
        if not progress.resumed:
            _evaluate(job, engine, progress, watchers)

        while not progress.done:
            step_started = time.monotonic()
            rate = learning_rate(progress.step, progress.total_steps, job.optim)
            totals = accumulate(job, engine, progress.step)
            norm = engine.step(rate)
            require_finite_gradient(norm, job, progress.step)
            progress.advance(totals, norm, rate, speed.add(totals, time.monotonic() - step_started))

            metrics = progress.flush() if progress.due(run.logging_steps) else None
            for watcher in watchers:
                watcher.on_step(progress, metrics)
            if progress.due(run.eval_steps):
                margins = _evaluate(job, engine, progress, watchers)
            stopping = any_rank(stop.asked)
            if stopping or (run.save_steps and progress.step % run.save_steps == 0):
                store.save(engine, progress.step, progress.state(), progress.score())
                progress.saved = progress.step
            if stopping:
                raise TrainingError(_stopped(job, progress, stop))

        if margins is None:  # a killed run had done all steps
            margins = _margins_of(_test(job, engine))
        return FitResult(
            steps=progress.step, metrics=progress.last, eval_before=progress.eval_before,
            eval_after=progress.eval_last, weights=engine.export_state_dict(), peak_memory=peak_memory(),
            seconds=time.monotonic() - started, moving_loss=progress.moving_loss, converged=progress.converged,
            margins=margins,
        )  # fmt: skip


def _evaluate(job: Job, engine: Engine, progress: Progress, watchers: Sequence[Callback]) -> dict[str, Margins]:
    """Evaluate on every test set; what each pair got."""
    found = _test(job, engine)
    if found:
        progress.evaluated({name: value for test in found.values() for name, value in test.metrics.items()})
        for watcher in watchers:
            watcher.on_evaluation(progress, progress.eval_last)
    return _margins_of(found)


def _test(job: Job, engine: Engine) -> dict[str, Evaluation]:
    return {name: evaluate(engine, job.method, *test, name=name) for name, test in job.tests.items()}


def _margins_of(found: Mapping[str, Evaluation]) -> dict[str, Margins]:
    return {name: test.margins for name, test in found.items() if test.margins is not None}


@contextmanager
def _engine(job: Job, watchers: Sequence[Callback]) -> Iterator[Engine]:
    """The stage's engine; freed at the end, well or badly, and the callbacks closed."""
    engine = Engine(job.model, job.optim, job.run)
    try:
        yield engine
    finally:
        for watcher in watchers:
            watcher.on_close()
        engine.destroy()


class _Stop:
    """What has asked the training to stop after its step: signals, or the end of the `deepspeed` command."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.received: list[int] = []
        self.first = math.inf  # time of the first Ctrl-C

    @property
    def asked(self) -> bool:
        """Whether the step is to be the last."""
        return bool(self.received) or runner_has_ended()

    @property
    def by(self) -> str:
        """What users call it."""
        return "Ctrl-C" if signal.SIGINT in self.received else "SIGTERM"

    def take(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C ends at once."""
        if number == signal.SIGINT:
            now = time.monotonic()
            if now - self.first > ONE_STROKE:
                signal.default_int_handler(number, frame)
            if self.first == math.inf and is_main():
                logger.warning(
                    "%s: the step is finished and a checkpoint written; Ctrl-C again ends at once, without one",
                    self.stage,
                )
            self.first = min(self.first, now)
        self.received.append(number)


@contextmanager
def _stop_signals(stage: str) -> Iterator[_Stop]:
    """While inside, SIGTERM and Ctrl-C only change what is yielded. Python allows this in the main thread."""
    stop = _Stop(stage)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _naming_what_is_lost(job: Job, progress: Progress) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        lost = progress.step - progress.saved
        kept = f"the checkpoint of step {progress.saved}" if progress.saved else "no checkpoint"
        raise KeyboardInterrupt(
            f"{job.stage} was ended in step {progress.step + 1} of {progress.total_steps}; {kept} is there, and "
            f"{counted(lost, 'finished step')} {agreeing(lost, 'are')} lost"
        ) from None


def _stopped(job: Job, progress: Progress, stop: _Stop) -> str:
    return (
        f"{job.stage} was stopped by {stop.by} after step {progress.step} of {progress.total_steps}; a checkpoint is "
        f"in {job.directory / 'checkpoints'}, the same command goes on from there"
    )
