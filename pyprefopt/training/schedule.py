"""Learning rates: one value per optimizer step, a function of the step's number and nothing else."""

from __future__ import annotations

import math

from pyprefopt.settings.config import OptimConfig


def total_steps(optim: OptimConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of a training: `max_steps`, or `num_train_epochs` passes (a started step is a step)."""
    if optim.max_steps > 0:
        return optim.max_steps
    return max(1, math.ceil(round(optim.num_train_epochs * steps_per_epoch, 6)))  # 1.1 * 30 is 33, not 33.00…04


def learning_rate(step: int, total: int, optim: OptimConfig) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`.

    w = ceil(warmup_ratio * total) warm-up steps rise linearly and reach the peak at step w; from there the rate
    falls towards 0 at `total`, by half a cosine or a line, or stays. Step 0 of a warm-up takes 1 / (w + 1) of the
    peak, so that no step is spent on a rate of 0; after the warm-up the values are those of transformers.
    """
    warmup = min(math.ceil(round(optim.warmup_ratio * total, 6)), total)
    if step < warmup:
        return optim.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (total - warmup)
    if optim.lr_scheduler_type == "cosine":
        return optim.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.lr_scheduler_type == "linear":
        return optim.learning_rate * (1 - progress)
    return optim.learning_rate
