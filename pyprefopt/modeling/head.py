"""Log-probs of given tokens from hidden states, without ever holding the logits of all of them.

The vocabulary is walked in blocks, not the rows: a block's weight gradient is then one matrix product over all rows,
complete when it is written, so nothing of the weight's size is added up block by block, and only [M] and [M, H]
are carried from block to block (in float32). The backward pass recomputes each block's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_BLOCK = 4096  # vocabulary entries of one block; 16,384 rows x 4,096 x 4 bytes = 256 MB
_MODULE_ELEMENTS = 2**24  # logits that exist at once where the head has to be called as a module


@dataclass(frozen=True)
class HeadTransform:
    """What an architecture does to the head's output: y = cap * tanh(scale * z / cap), or y = scale * z."""

    scale: float = 1.0  # Cohere: logit_scale; Granite: 1 / logits_scaling
    cap: float | None = None  # Gemma 2: final_logit_softcapping

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> HeadTransform:
        """Read the three settings that transformers' architectures know."""
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(scale, None if cap is None else float(cap))

    def __call__(self, logits: Tensor) -> Tensor:
        """Final logits from the head's output, any shape."""
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def derivative(self, logits: Tensor) -> Tensor | float:
        """dy/dz, from the final logits y."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap) ** 2)


def token_logps(head: nn.Module, hidden: Tensor, targets: Tensor, transform: HeadTransform) -> Tensor:
    """log p(target) for each row: hidden [M, H], targets [M] i64 -> [M] in max(float32, hidden's dtype).

    A plain `nn.Linear` goes through the vocabulary blocks; any other head (LoRA on it, quantized) is called as a
    module on blocks of rows under activation checkpointing.
    """
    if type(head) is nn.Linear and head.weight.dtype == hidden.dtype:
        return _LinearLogps.apply(hidden, head.weight, head.bias, targets, transform)  # type: ignore[no-any-return]
    return _module_logps(head, hidden, targets, transform)


def _module_logps(head: nn.Module, hidden: Tensor, targets: Tensor, transform: HeadTransform) -> Tensor:
    vocabulary = getattr(head, "out_features", 2**17)
    rows = max(1, min(-(-len(hidden) // 8), _MODULE_ELEMENTS // vocabulary))

    def logps(block: Tensor, ids: Tensor) -> Tensor:
        dtype = torch.promote_types(block.dtype, torch.float32)
        return -F.cross_entropy(transform(head(block).to(dtype)), ids, reduction="none")

    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.cat([checkpoint(logps, block, ids, use_reentrant=False) for block, ids in parts])


class _LinearLogps(torch.autograd.Function):
    """log softmax(f(h W' + b)) at the target, f a HeadTransform."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: HeadTransform
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logsumexp = torch.full(targets.shape, float("-inf"), dtype=dtype, device=hidden.device)
        target_logit = torch.zeros_like(logsumexp)
        for first, last in _blocks(len(weight)):
            logits = transform(_logits(hidden, weight, bias, first, last))
            logsumexp = torch.logaddexp(logsumexp, torch.logsumexp(logits, dim=1))
            inside, column = _columns(targets, first, last)
            target_logit = torch.where(inside, logits.gather(1, column)[:, 0], target_logit)
        ctx.save_for_backward(hidden, weight, bias, targets, logsumexp)
        ctx.transform = transform
        return target_logit - logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With p = softmax(y): dz = (1[target] - p) * grad * f'(z); dh = dz W, dW = dz' h, db = sum dz."""
        hidden, weight, bias, targets, logsumexp = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros(hidden.shape, dtype=logsumexp.dtype, device=hidden.device) if wants_hidden else None
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.empty_like(bias) if wants_bias else None
        for first, last in _blocks(len(weight)):
            logits = ctx.transform(_logits(hidden, weight, bias, first, last))
            inside, column = _columns(targets, first, last)
            d_logits = torch.exp(logits - logsumexp[:, None]).neg_()
            d_logits.scatter_add_(1, column, inside.to(d_logits.dtype)[:, None])
            d_logits.mul_(grad[:, None]).mul_(ctx.transform.derivative(logits))
            if d_bias is not None:
                d_bias[first:last] = d_logits.sum(0).to(bias.dtype)
            d_logits = d_logits.to(hidden.dtype)  # the products below add up in float32 inside
            if d_hidden is not None:
                d_hidden += d_logits @ weight[first:last]
            if d_weight is not None:
                torch.mm(d_logits.T, hidden, out=d_weight[first:last])
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias, None, None


def _blocks(vocabulary: int) -> Iterator[tuple[int, int]]:
    """Cut the vocabulary into at least 8 blocks, unless it is tiny; the same blocks for every batch."""
    size = max(256, min(_BLOCK, -(-vocabulary // 8)))
    for first in range(0, vocabulary, size):
        yield first, min(first + size, vocabulary)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, first: int, last: int) -> Tensor:
    """The head's output for one block, [M, last - first], in at least float32."""
    logits = F.linear(hidden, weight[first:last], None if bias is None else bias[first:last])
    return logits.to(torch.promote_types(hidden.dtype, torch.float32))


def _columns(targets: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in the block, [M] bool, and their column there, [M, 1] (0 for the others)."""
    inside = (targets >= first) & (targets < last)
    return inside, torch.where(inside, targets - first, 0)[:, None]
