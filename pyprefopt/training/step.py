"""One optimizer step: the gradients of a window of rows, whatever the packing, the ranks and the method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, SupportsInt

import torch

from pyprefopt.errors import DataError, TrainingError
from pyprefopt.losses import weighted_sums
from pyprefopt.ranks import all_sum, any_rank, world_size
from pyprefopt.training.metrics import TALLY, batch_units, tally
from pyprefopt.types import Outputs, Sums

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.losses import Method
    from pyprefopt.training.engine import Engine
    from pyprefopt.training.job import Job
    from pyprefopt.types import PackedBatch

_REMEDY = (
    "this step changed no weight and wrote no checkpoint; look at these rows, lower learning_rate, or train in float32"
)


class Outcome(NamedTuple):
    """What is left of a micro-batch to explain a loss that is not finite; nothing has a gradient."""

    batch: PackedBatch
    rewards: Tensor  # [R]
    logps: Tensor | None  # [M]
    weights: Tensor | None  # [K, M]


def accumulate(job: Job, engine: Engine, step: int) -> Tensor:
    """Compute the gradients of one optimizer step.

    The loss is a global sum over a global count, so that the gradient does not depend on how the step was packed or
    spread over ranks: a micro-batch contributes its sum * world / N, and DeepSpeed averages over ranks.

    Args:
        job: the method and the data.
        engine: holds the model, and receives the gradients.
        step: which optimizer step, from 0.

    Returns:
        The step's tally over all ranks, f64 [len(TALLY)], on the CPU.

    Raises:
        DataError: nothing in the step has a loss.
        TrainingError: the loss is not finite; names the rows.
    """
    batches = [batch.to(engine.device) for batch in job.train.step(step)]
    units = all_sum(torch.stack([batch_units(job.method, batch) for batch in batches]).sum()).item()
    if units == 0:
        raise DataError(
            f"{job.stage}: step {step + 1} has no {job.method.unit} to average the loss over, its rows are "
            f"{list_rows(job.train.window(step))}; {type(job.method).__name__} needs at least one"
        )
    totals = torch.zeros(len(TALLY), dtype=torch.float64, device=engine.device)
    outcomes: list[Outcome] = []
    engine.train()
    for i, batch in enumerate(batches):
        outputs = Outputs.of(engine(batch))
        sums = method_sums(job.method, batch, outputs)
        losses, rewards = job.method.loss(sums, batch), job.method.rewards(sums, batch).detach()
        engine.backward(losses.sum() * (world_size() / units), last=i == len(batches) - 1)
        totals += tally(job.method, batch, losses, rewards, outputs, sums.weights)
        logps = None if outputs.logps is None else outputs.logps.detach()
        outcomes.append(Outcome(batch, rewards, logps, sums.weights))
    totals = all_sum(totals).cpu()
    if not math.isfinite(totals[TALLY.index("loss")]):
        rows = list_rows(_bad_rows(job, step, outcomes))
        cause = _bad_weights(job.method, outcomes)
        raise TrainingError(f"{job.stage}: the loss of step {step + 1} is not finite at rows {rows}{cause}; {_REMEDY}")
    return totals


def method_sums(method: Method, batch: PackedBatch, given: Tensor | Outputs) -> Sums:
    """Sum what the model gave over each response, as `method.loss` takes it.

    User weights multiply the method's weights and the divergence at a token, and change no length.

    Args:
        method: chooses the weights.
        batch: the micro-batch.
        given: log-probs [M], or Outputs.

    Returns:
        Sums in float64, because a loss reads small differences of thousands of nats; a reward model's scores as they
        are.

    Raises:
        DataError: batch or model do not give what the method needs.
    """
    outputs = Outputs.of(given)
    _require_needs(method, batch, outputs)
    if outputs.logps is None:
        assert outputs.scores is not None  # noqa: S101  (a model gives one of them)
        return Sums(policy=outputs.scores[None], method=type(method).__name__)
    with torch.no_grad():
        own = method.token_weights(batch, outputs.logps.detach())
        weights = own if batch.user_weights is None else own * batch.user_weights
    ref = kl = None
    if "ref_logps" in method.needs and batch.ref_logps is not None:
        ref = weighted_sums(weights, batch.ref_logps.double(), batch)
    if "ref_kl" in method.needs and outputs.kl is not None:
        counted = batch.token_mask if batch.user_weights is None else batch.token_mask * batch.user_weights
        kl = weighted_sums(counted[None], outputs.kl.double(), batch)[0]
    policy = weighted_sums(weights, outputs.logps.double(), batch)
    return Sums(policy, ref, kl, weights=own, method=type(method).__name__)


def _require_needs(method: Method, batch: PackedBatch, outputs: Outputs) -> None:
    """DataError naming what is missing and who should have given it."""
    by_model = {"ref_kl": outputs.kl, "reward_head": outputs.scores}
    for need in sorted(method.needs):
        if need in by_model and by_model[need] is None:
            raise DataError(
                f"{type(method).__name__} needs {need}, but the model does not give it; "
                "open it with pyprefopt.stages.models.open_trained"
            )
        if need not in by_model and getattr(batch, need, None) is None:
            raise DataError(
                f"{type(method).__name__} needs {need}, but the batch of rows {list_rows(batch.response_row.tolist())} "
                f"has none; compute {need} for all rows and give them to the Packer"
            )


def require_finite_gradient(norm: float, job: Job, step: int) -> None:
    """TrainingError naming the step's rows where the gradient's norm is not finite (the engine has not updated)."""
    if not math.isfinite(norm):
        rows = list_rows(job.train.window(step))
        raise TrainingError(f"{job.stage}: the gradient of step {step + 1} is not finite at rows {rows}; {_REMEDY}")


def list_rows(rows: Iterable[SupportsInt], shown: int = 20) -> str:
    """Row numbers for a message: `3, 7, 9 and 4 more`."""
    distinct = sorted({int(row) for row in rows})
    more = f" and {len(distinct) - shown} more" if len(distinct) > shown else ""
    return ", ".join(map(str, distinct[:shown])) + more


def _bad_rows(job: Job, step: int, outcomes: Sequence[Outcome]) -> list[int]:
    """Rows of the step whose reward is not finite on any rank; all its rows where every reward is finite."""
    window = [int(row) for row in job.train.window(step)]
    mine = {int(row) for one in outcomes for row in one.batch.response_row[~one.rewards.isfinite()].tolist()}
    flags = all_sum(torch.tensor([float(row in mine) for row in window], device=outcomes[0].rewards.device)).tolist()
    return [row for row, flag in zip(window, flags, strict=True) if flag] or window


def _bad_weights(method: Method, outcomes: Sequence[Outcome]) -> str:
    """The cause, where finite log-probs meet token weights of the method that are not finite, on any rank."""
    bad = any(
        one.logps is not None and bool(one.logps.isfinite().all())
        and one.weights is not None and not bool(one.weights.isfinite().all())
        for one in outcomes
    )  # fmt: skip
    return f", where the token weights of loss.* are not finite ({method})" if any_rank(bad) else ""
