"""Log-probs of given tokens from hidden states, and the divergence from a reference, without the logits of all rows.

The vocabulary is walked in blocks, not the rows: a block's weight gradient is then one matrix product over all rows,
complete when it is written, so nothing of the weight's size is added up block by block, and only [M] and [M, H]
are carried from block to block (in float32). The backward pass recomputes each block's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.products import product

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_BLOCK = 4096  # vocabulary entries of one block; 16,384 rows x 4,096 x 4 bytes = 256 MB
_CPU_BLOCK = 1024  # on a CPU: 2,000 rows stay in its cache
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


class Readout(NamedTuple):
    """Where a model's logits come from: transform(head(hidden)), hidden [M, H]."""

    head: nn.Module
    hidden: Tensor
    transform: HeadTransform

    @property
    def plain(self) -> bool:
        """Whether the vocabulary can be walked in blocks of the head's weight."""
        return type(self.head) is nn.Linear and self.head.weight.dtype == self.hidden.dtype

    def logits(self, rows: Tensor) -> Tensor:
        """Final logits [rows, V] of some rows of `hidden`, in at least float32."""
        return self.transform(self.head(rows).to(torch.promote_types(rows.dtype, torch.float32)))


def token_logps_and_kl(policy: Readout, reference: Readout, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target) and KL(reference || policy) over the whole vocabulary, for each row: [M], [M].

    Both models are read block by block, so no tensor grows with rows x vocabulary; the reference has no gradient.
    ConfigError where the two vocabularies differ in size.
    """
    sizes = [getattr(readout.head, "out_features", None) for readout in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise ConfigError(f"policy and reference must have one vocabulary, but have {sizes[0]} and {sizes[1]} ids")
    if not (policy.plain and reference.plain):
        return _module_logps_and_kl(policy, reference, targets)
    weights = [(r.hidden, r.head.weight, r.head.bias, r.transform) for r in (policy, reference)]
    return _LinearLogpsAndKl.apply(targets, *weights[0], *weights[1])  # type: ignore[no-any-return]


def _module_logps_and_kl(policy: Readout, reference: Readout, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(policy.head, len(targets))

    def both(block: Tensor, ref_block: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            ref = torch.log_softmax(reference.logits(ref_block), dim=-1)
        own = torch.log_softmax(policy.logits(block), dim=-1)
        return own.gather(1, ids[:, None])[:, 0], (ref.exp() * (ref - own)).sum(-1)

    blocks = zip(*(torch.split(t, rows) for t in (policy.hidden, reference.hidden, targets)), strict=True)
    parts = [checkpoint(both, *block, use_reentrant=False) for block in blocks]
    logps, kl = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(kl)


def _rows(head: nn.Module, count: int) -> int:
    """Rows whose logits exist at once where a head is called as a module."""
    return max(1, min(-(-count // 8), _MODULE_ELEMENTS // getattr(head, "out_features", 2**17)))


def _module_logps(head: nn.Module, hidden: Tensor, targets: Tensor, transform: HeadTransform) -> Tensor:
    rows = _rows(head, len(hidden))

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
        for first, last in _blocks(weight):
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
        """With p = softmax(y): dy = (1[target] - p) * grad."""
        hidden, weight, bias, targets, logsumexp = ctx.saved_tensors

        def d_final(logits: Tensor, first: int, last: int) -> Tensor:
            inside, column = _columns(targets, first, last)
            d_logits = torch.exp(logits - logsumexp[:, None]).neg_()
            d_logits.scatter_add_(1, column, inside.to(d_logits.dtype)[:, None])
            return d_logits.mul_(grad[:, None])

        return *_pull_back(hidden, weight, bias, ctx.transform, ctx.needs_input_grad[:3], d_final), None, None


class _LinearLogpsAndKl(torch.autograd.Function):
    """log softmax(y) at the target, and sum of q (log q - log softmax(y)), q = softmax(y') of the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: Tensor,
        hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: HeadTransform,
        ref_hidden: Tensor, ref_weight: Tensor, ref_bias: Tensor | None, ref_transform: HeadTransform,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logsumexp = torch.full(targets.shape, float("-inf"), dtype=dtype, device=hidden.device)
        ref_logsumexp, target_logit = logsumexp.clone(), torch.zeros_like(logsumexp)
        excess = torch.zeros_like(logsumexp)  # mean of y' - y under the reference, over the blocks so far
        for first, last in _blocks(weight):
            logits = transform(_logits(hidden, weight, bias, first, last))
            ref_logits = ref_transform(_logits(ref_hidden, ref_weight, ref_bias, first, last))
            logsumexp = torch.logaddexp(logsumexp, torch.logsumexp(logits, dim=1))
            inside, column = _columns(targets, first, last)
            target_logit = torch.where(inside, logits.gather(1, column)[:, 0], target_logit)
            own = torch.logsumexp(ref_logits, dim=1)  # the block's share of the reference's mass is exp(own - total)
            total = torch.logaddexp(ref_logsumexp, own)
            mean = (torch.exp(ref_logits - own[:, None]) * (ref_logits - logits)).sum(1)
            excess = torch.exp(ref_logsumexp - total) * excess + torch.exp(own - total) * mean
            ref_logsumexp = total
        ctx.save_for_backward(targets, hidden, weight, bias, logsumexp, ref_hidden, ref_weight, ref_bias, ref_logsumexp)
        ctx.transforms = transform, ref_transform
        return target_logit - logsumexp, excess - ref_logsumexp + logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, kl_grad: Tensor) -> tuple[Tensor | None, ...]:
        """With p = softmax(y): dy = (1[target] - p) * grad + (p - q) * kl_grad; none for the reference."""
        targets, hidden, weight, bias, logsumexp, ref_hidden, ref_weight, ref_bias, ref_logsumexp = ctx.saved_tensors
        transform, ref_transform = ctx.transforms

        def d_final(logits: Tensor, first: int, last: int) -> Tensor:
            ref_logits = ref_transform(_logits(ref_hidden, ref_weight, ref_bias, first, last))
            inside, column = _columns(targets, first, last)
            d_logits = torch.exp(logits - logsumexp[:, None]).mul_((kl_grad - grad)[:, None])
            d_logits.sub_(torch.exp(ref_logits - ref_logsumexp[:, None]).mul_(kl_grad[:, None]))
            return d_logits.scatter_add_(1, column, torch.where(inside, grad, 0)[:, None])

        grads = _pull_back(hidden, weight, bias, transform, ctx.needs_input_grad[1:4], d_final)
        return None, *grads, None, None, None, None, None


def _pull_back(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transform: HeadTransform,
    wants: tuple[bool, ...],
    d_final: Callable[[Tensor, int, int], Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """From the gradient of the final logits y = f(z), block by block: dz = dy f'(z), dh = dz W, dW = dz' h.

    `d_final(y, first, last)` gives dy of one block; `wants` says which of hidden, weight and bias need a gradient.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    d_hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if wants[0] else None
    d_weight = torch.empty_like(weight) if wants[1] else None
    d_bias = torch.empty_like(bias) if bias is not None and wants[2] else None
    for first, last in _blocks(weight):
        logits = transform(_logits(hidden, weight, bias, first, last))
        d_logits = d_final(logits, first, last).mul_(transform.derivative(logits))
        if d_bias is not None:
            d_bias[first:last] = d_logits.sum(0).to(d_bias.dtype)
        d_logits = d_logits.to(hidden.dtype)  # the products below add up in float32 inside
        if d_hidden is not None:
            d_hidden += product(d_logits, weight[first:last])
        if d_weight is not None:
            d_weight[first:last] = product(d_logits.T, hidden)
    return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias


def _blocks(weight: Tensor) -> Iterator[tuple[int, int]]:
    """Cut the vocabulary into at least 8 blocks, unless it is tiny; the same blocks for every batch."""
    vocabulary = len(weight)
    size = max(256, min(_CPU_BLOCK if weight.device.type == "cpu" else _BLOCK, -(-vocabulary // 8)))
    for first in range(0, vocabulary, size):
        yield first, min(first + size, vocabulary)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, first: int, last: int) -> Tensor:
    """The head's output for one block, [M, last - first], in at least float32."""
    logits = product(hidden, weight[first:last].T)
    if bias is not None:
        logits += bias[first:last]
    return logits.to(torch.promote_types(hidden.dtype, torch.float32))


def _columns(targets: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in the block, [M] bool, and their column there, [M, 1] (0 for the others)."""
    inside = (targets >= first) & (targets < last)
    return inside, torch.where(inside, targets - first, 0)[:, None]
