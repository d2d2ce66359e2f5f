"""Triton kernels for a block of the head's output: one read of it each way, where PyTorch's operators take six.

For log-probs and entropies; divergences, and gradients of entropies, go PyTorch's way. A block [M, C] is what the
head's product wrote, in the model's dtype; everything is computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprefopt.errors import ConfigError

if TYPE_CHECKING:
    from pyprefopt.modeling.head.transform import HeadTransform

_COLUMNS = 1024  # vocabulary entries of a row that are in registers at once


def take(hidden: Tensor) -> bool:
    """Whether these can be computed here: float32 or bfloat16 on a GPU, or anywhere under TRITON_INTERPRET=1."""
    on_device = hidden.is_cuda or bool(triton.knobs.runtime.interpret)
    return on_device and hidden.dtype in (torch.float32, torch.bfloat16)


def check_here() -> None:
    """ConfigError where this machine has no GPU that they could run on."""
    if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
        raise ConfigError("head_kernel triton needs a CUDA device, and there is none; set head_kernel torch")


def add_block(
    raw: Tensor,
    targets: Tensor,
    first: int,
    transform: HeadTransform,
    logsumexp: Tensor,
    mean: Tensor,
    target_logit: Tensor,
) -> None:
    """Take in the block of the vocabulary that begins with entry `first`: raw [M, C], targets [M] i64.

    `logsumexp`, `mean` (of the final logits under their softmax) and `target_logit`, [M] f32, are those of the blocks
    before, and are brought up to date in place.
    """
    if len(raw):
        _add[(len(raw),)](
            raw, targets, logsumexp, mean, target_logit, first, raw.shape[1], raw.stride(0), transform.scale,
            transform.cap or 1.0, CAPPED=transform.cap is not None, COLUMNS=_COLUMNS,
        )  # fmt: skip


def to_gradient(raw: Tensor, targets: Tensor, first: int, transform: HeadTransform, logsumexp: Tensor) -> Tensor:
    """`raw` [M, C], overwritten with d(-log p(target)) / d raw = (p - 1[target]) f'(raw)."""
    if len(raw):
        _gradient[(len(raw),)](
            raw, targets, logsumexp, first, raw.shape[1], raw.stride(0), transform.scale, transform.cap or 1.0,
            CAPPED=transform.cap is not None, COLUMNS=_COLUMNS,
        )  # fmt: skip
    return raw


@triton.jit
def _final(z, scale, cap, CAPPED: tl.constexpr):
    """`HeadTransform`, of float32 numbers."""
    y = z * scale
    if CAPPED:
        y = cap * (2 * tl.sigmoid(2 * y / cap) - 1)  # tanh, which Triton has not on every platform
    return y


@triton.jit
def _add(
    raw, targets, logsumexp, mean, target_logit, first, count, stride, scale, cap,
    CAPPED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top, mass, moment = -float("inf"), 0.0, 0.0  # of this block: sums of exp(y - top) and of y exp(y - top)
    for start in range(0, count, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < count
        z = tl.load(raw + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        y = tl.where(inside, _final(z, scale, cap, CAPPED), -float("inf"))
        higher = tl.maximum(top, tl.max(y, 0))
        share, old = tl.exp(y - higher), tl.exp(top - higher)
        mass = mass * old + tl.sum(share, 0)
        moment = moment * old + tl.sum(tl.where(inside, y, 0.0) * share, 0)
        top = higher
    own, before = top + tl.log(mass), tl.load(logsumexp + row)
    higher = tl.maximum(own, before)
    total = higher + tl.log(tl.exp(own - higher) + tl.exp(before - higher))
    tl.store(mean + row, tl.exp(before - total) * tl.load(mean + row) + tl.exp(own - total) * (moment / mass))
    tl.store(logsumexp + row, total)
    at = tl.load(targets + row) - first
    if (at >= 0) & (at < count):
        tl.store(target_logit + row, _final(tl.load(raw + row * stride + at).to(tl.float32), scale, cap, CAPPED))


@triton.jit
def _gradient(
    raw, targets, logsumexp, first, count, stride, scale, cap,
    CAPPED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    total, at = tl.load(logsumexp + row), tl.load(targets + row) - first
    for start in range(0, count, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        place = raw + row * stride + column
        y = _final(tl.load(place, mask=column < count, other=0.0).to(tl.float32), scale, cap, CAPPED)
        slope = scale * (1 - (y / cap) * (y / cap)) if CAPPED else scale
        gradient = (tl.exp(y - total) - tl.where(column == at, 1.0, 0.0)) * slope
        tl.store(place, gradient.to(raw.dtype.element_ty), mask=column < count)
