"""The training loop: any method, any stage. It never asks which method it runs."""

from __future__ import annotations

import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyprefopt.errors import DataError, TrainingError, check
from pyprefopt.losses import Method, count_units, weighted_sums
from pyprefopt.train.callbacks import Callback, default_callbacks
from pyprefopt.train.checkpoint import CheckpointStore
from pyprefopt.train.config import OptimConfig, RunConfig
from pyprefopt.train.dist import all_sum, is_main, world_size
from pyprefopt.train.engine import Engine
from pyprefopt.train.metrics import TALLY, averages, ranking_tally, tally
from pyprefopt.train.progress import Metrics, Progress
from pyprefopt.train.schedule import learning_rate, total_steps
from pyprefopt.types import PackedBatch, Sums


class Loader(Protocol):
    """What the trainer asks of `data.loader.StepLoader`."""

    steps_per_epoch: int

    def step(self, k: int) -> list[PackedBatch]:
        """This rank's micro-batches of optimizer step k, as many on every rank."""

    def window(self, k: int) -> Sequence[int]:
        """The input rows of step k, the same on every rank."""

    def scan(self, pad: bool = True) -> Iterator[PackedBatch]:
        """This rank's micro-batches over the whole set; with `pad` as many on every rank."""


@dataclass(frozen=True)
class Job:
    """One training: `model` maps a PackedBatch to log-probs [M], `train` and `eval` bring what `method` needs."""

    stage: str
    model: nn.Module
    method: Method
    train: Loader
    optim: OptimConfig
    run: RunConfig
    directory: Path  # the stage's; checkpoints/ is made in it
    key: str  # the stage's; a checkpoint of another key is never resumed
    eval: Loader | None = None  # evaluated before, after and every run.eval_steps
    ranking: Loader | None = None  # the same pairs without selection, for eval_ranking_accuracy

    @property
    def output_dir(self) -> Path:
        """Where metrics.jsonl and tensorboard/ are: the run's directory, or the stage's where there is none."""
        return Path(self.run.output_dir) if self.run.output_dir else self.directory


@dataclass(frozen=True)
class FitResult:
    """What a training leaves behind. `weights` are on the CPU, on rank 0 only; whole also under ZeRO-3."""

    steps: int
    metrics: Metrics  # the last logged training metrics
    eval_before: Metrics
    eval_after: Metrics
    weights: dict[str, Tensor] | None
    peak_memory: int  # bytes: device memory on a GPU, else the process's resident set
    seconds: float  # of this call; a resumed training took longer


def fit(job: Job, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Train `job.model` in place, or go on from the stage's last checkpoint; every rank calls this.

    TrainingError where the loss or gradient is not finite (nothing is updated or saved) and after SIGTERM (the step
    is finished and a checkpoint written); ArtifactError for a checkpoint of another launch.
    """
    started, run = time.monotonic(), job.run
    progress = Progress(total_steps(job.optim, job.train.steps_per_epoch), job.train.steps_per_epoch)
    watchers = [*default_callbacks(job.stage, job.output_dir), *callbacks]
    store = CheckpointStore(job.directory / "checkpoints", job.key, run.zero_stage, run.save_total_limit)
    engine = Engine(job.model, job.optim, run)
    try:
        with _sigterm() as stop:
            if (state := store.resume(engine)) is not None:
                progress.restore(state)
            _notify(watchers, "on_start", progress)
            if progress.step == 0 and not progress.resumed:
                _evaluate_now(job, engine, progress, watchers)

            while progress.step < progress.total_steps:
                step_started, seen = time.monotonic(), progress.num_tokens
                rate = learning_rate(progress.step, progress.total_steps, job.optim)
                totals, stopping = accumulate(job, engine, progress.step, stop())
                norm = engine.step(rate)
                _require_finite_gradient(norm, job, progress.step)
                progress.advance(totals)

                logged = _due(progress, run.logging_steps)
                if logged:
                    speed = (progress.num_tokens - seen) / (time.monotonic() - step_started)
                    means = progress.flush()
                    progress.last = means | {"grad_norm": norm, "learning_rate": rate, "tokens_per_second": speed}
                _notify(watchers, "on_step", progress, progress.last if logged else None)
                if _due(progress, run.eval_steps):
                    _evaluate_now(job, engine, progress, watchers)
                if stopping or (run.save_steps and progress.step % run.save_steps == 0):
                    store.save(engine, progress.step, progress.state(), progress.score())
                if stopping and progress.step < progress.total_steps:
                    raise TrainingError(_stopped(job, progress))

            weights = engine.export_state_dict()
            return FitResult(
                steps=progress.step, metrics=progress.last, eval_before=progress.eval_before,
                eval_after=progress.eval_last, weights=weights, peak_memory=peak_memory(),
                seconds=time.monotonic() - started,
            )  # fmt: skip
    finally:
        _notify(watchers, "on_close")
        engine.destroy()


def accumulate(job: Job, engine: Engine, step: int, stop: bool) -> tuple[Tensor, bool]:
    """Gradients of one optimizer step: its global tally, and whether any rank was told to stop.

    The loss is a global sum over a global count, so the gradient does not depend on how the step was packed or
    spread over ranks: each micro-batch contributes its sum * world / N, and DeepSpeed averages over ranks.
    """
    batches = [batch.to(engine.device) for batch in job.train.step(step)]
    units = all_sum(
        torch.stack([count_units(job.method.unit, batch).double().to(engine.device) for batch in batches]).sum()
    )
    totals = torch.zeros(len(TALLY), dtype=torch.float64, device=engine.device)
    outcomes: list[tuple[PackedBatch, Tensor]] = []
    engine.train()
    for i, batch in enumerate(batches):
        logps = engine(batch)
        sums = method_sums(job.method, batch, logps)
        losses, rewards = job.method.loss(sums, batch), job.method.rewards(sums, batch).detach()
        engine.backward((losses.sum() * (world_size() / units)).to(losses.dtype), last=i == len(batches) - 1)
        totals += tally(job.method, batch, losses, rewards, logps)
        outcomes.append((batch, rewards))
    totals = all_sum(torch.cat([totals, totals.new_tensor([float(stop)])])).cpu()
    if not math.isfinite(totals[0]):
        raise TrainingError(_not_finite(job, step, outcomes))
    return totals[:-1], bool(totals[-1] > 0)


def method_sums(method: Method, batch: PackedBatch, logps: Tensor) -> Sums:
    """Weighted sums per response, as `method.loss` takes them; DataError where the batch lacks what it needs.

    User weights multiply the method's weights and change no length.
    """
    for need in sorted(method.needs):
        if getattr(batch, need, None) is None:
            raise DataError(
                f"{type(method).__name__} needs {need}, but the batch of rows {_rows(batch.response_row.tolist())} has "
                f"none; compute them for all rows and give them to the Packer as {need}="
            )
    with torch.no_grad():
        weights = method.token_weights(batch, logps.detach())
        weights = weights if batch.user_weights is None else weights * batch.user_weights
    ref = None
    if "ref_logps" in method.needs and batch.ref_logps is not None:
        ref = weighted_sums(weights, batch.ref_logps, batch)
    return Sums(policy=weighted_sums(weights, logps, batch), ref=ref)


@torch.no_grad()
def evaluate(
    model: Engine | nn.Module, method: Method, loader: Loader | None, ranking: Loader | None = None
) -> Metrics:
    """`eval_loss`, `eval_rewards/*`, `eval_logps/*` over `loader`, `eval_ranking_accuracy` over `ranking`.

    Exact over all ranks: global sums over global counts. Ranking accuracy is the share of pairs whose chosen
    response has the higher mean log-prob over all its tokens, a tie counts 1/2.
    """
    device = model.device if isinstance(model, Engine) else next(model.parameters()).device
    metrics: Metrics = {}
    model.train(False)

    def total(source: Loader, size: int, counts: Callable[[PackedBatch], Tensor]) -> Tensor:
        sums = torch.zeros(size, dtype=torch.float64, device=device)
        for batch in source.scan(pad=True):
            sums += counts(batch.to(device))
        return all_sum(sums).cpu()

    def one_tally(batch: PackedBatch) -> Tensor:
        logps = model(batch)
        sums = method_sums(method, batch, logps)
        return tally(method, batch, method.loss(sums, batch), method.rewards(sums, batch), logps)

    if loader is not None:
        metrics |= {f"eval_{name}": value for name, value in averages(total(loader, len(TALLY), one_tally)).items()}
    if ranking is not None:
        right, pairs = total(ranking, 2, lambda batch: ranking_tally(batch, model(batch))).tolist()
        metrics |= {"eval_ranking_accuracy": right / pairs} if pairs else {}
    model.train()
    return metrics


def peak_memory() -> int:
    """Most bytes used so far: of this rank's GPU, else resident memory of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _evaluate_now(job: Job, engine: Engine, progress: Progress, watchers: Sequence[Callback]) -> None:
    if job.eval is not None or job.ranking is not None:
        progress.evaluated(evaluate(engine, job.method, job.eval, job.ranking))
        _notify(watchers, "on_evaluation", progress, progress.eval_last)


def _due(progress: Progress, every: int) -> bool:
    """Every so many steps (0: never), and always at the last one."""
    return progress.step == progress.total_steps or bool(every and progress.step % every == 0)


def _notify(watchers: Sequence[Callback], hook: str, *arguments: Any) -> None:
    for watcher in watchers:
        getattr(watcher, hook)(*arguments)


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM only sets what the yielded function returns."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(job: Job, progress: Progress) -> str:
    return (
        f"{job.stage} was stopped by SIGTERM after step {progress.step} of {progress.total_steps}; a checkpoint is in "
        f"{job.directory / 'checkpoints'}, the same command goes on from there"
    )


def _not_finite(job: Job, step: int, outcomes: list[tuple[PackedBatch, Tensor]]) -> str:
    """Message with the rows whose reward is not finite, gathered from all ranks; else the rows of the whole step."""
    window = [int(row) for row in job.train.window(step)]
    mine = {int(row) for batch, rewards in outcomes for row in batch.response_row[~rewards.isfinite()].tolist()}
    device = outcomes[0][1].device
    flags = all_sum(torch.tensor([float(row in mine) for row in window], device=device)).tolist()
    bad = [row for row, flag in zip(window, flags, strict=True) if flag]
    return f"{job.stage}: the loss of step {step + 1} is not finite at rows {_rows(bad or window)}; {_REMEDY}"


def _require_finite_gradient(norm: float, job: Job, step: int) -> None:
    if not math.isfinite(norm):
        rows = _rows([int(row) for row in job.train.window(step)])
        raise TrainingError(
            f"{job.stage}: the gradient of step {step + 1} is not finite, its rows are {rows}; {_REMEDY}"
        )


_REMEDY = (
    "no weight was changed by this step and no checkpoint written; look at these rows, lower learning_rate, "
    "or train in float32"
)


def _rows(rows: Sequence[int], shown: int = 20) -> str:
    distinct = sorted(set(rows))
    more = f" and {len(distinct) - shown} more" if len(distinct) > shown else ""
    return ", ".join(map(str, distinct[:shown])) + more
