"""Log-probs of given tokens from hidden states, entropy, and divergence from a reference, without all rows' logits.

The vocabulary is walked in blocks, not the rows: a block's weight gradient is then one matrix product over all rows,
complete when it is written, so nothing of the weight's size is added up block by block, and only [M] and [M, H]
are carried from block to block (in float32). The backward pass recomputes each block's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import cpu_matmul
from pyprefopt.modeling.head.choice import SAMPLE, Kernel, choose_kernel, kernels_for
from pyprefopt.modeling.head.transform import HeadTransform
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from types import ModuleType

_BLOCK = 4096  # vocabulary entries of one block; 16,384 rows x 4,096 x 4 bytes = 256 MB
_CPU_BLOCK = 1024  # on a CPU: 2,000 rows stay in its cache
_MODULE_ELEMENTS = 2**24  # logits that exist at once where the head has to be called as a module


class Readout(NamedTuple):
    """Where a model's logits come from: transform(head(hidden)), hidden [M, H]."""

    head: nn.Module
    hidden: Tensor
    transform: HeadTransform
    kernel: Kernel = "auto"  # what reads the head's output

    @property
    def plain(self) -> bool:
        """Whether the vocabulary can be walked in blocks of the head's weight."""
        return type(self.head) is nn.Linear and self.head.weight.dtype == self.hidden.dtype

    def logits(self, rows: Tensor) -> Tensor:
        """Final logits [rows, V] of some rows of `hidden`, in at least float32."""
        return self.transform(self.head(rows).to(torch.promote_types(rows.dtype, torch.float32)))


def token_logps(policy: Readout, targets: Tensor) -> Tensor:
    """log p(target) for each row: targets [M] i64 -> [M] in max(float32, hidden's dtype)."""
    logps = token_outputs(policy, targets).logps
    assert logps is not None  # noqa: S101  (always there)
    return logps


def token_outputs(
    policy: Readout, targets: Tensor, *, reference: Readout | None = None, entropy: bool = False
) -> Outputs:
    """Compute log p(target) for each row, on demand with entropy and KL(reference || policy).

    All three come from one walk over the vocabulary. Plain `nn.Linear` heads go through vocabulary blocks; any other
    head (LoRA on it, quantized) is called as a module on blocks of rows under activation checkpointing.

    Args:
        policy: head and hidden states [M, H].
        targets: [M] i64.
        reference: head and hidden states [M, H] of the reference; None: no divergence.
        entropy: whether entropies are given.

    Returns:
        `logps`, `kl` and `entropy`, each [M] in nats, in max(float32, hidden's dtype), with gradients for the policy
        (none for the reference); None where it was not asked for.

    Raises:
        ConfigError: the two vocabularies differ in size.
    """
    readouts = [policy] if reference is None else [policy, reference]
    sizes = [getattr(readout.head, "out_features", None) for readout in readouts]
    if sizes[0] != sizes[-1]:
        raise ConfigError(f"policy and reference must have one vocabulary, but have {sizes[0]} and {sizes[1]} ids")
    if not all(readout.plain for readout in readouts):
        return _module_outputs(policy, targets, reference, entropy)
    kernel = _find_kernel(policy, targets) if reference is None else "torch"
    parts = [part for r in readouts for part in (r.hidden, r.head.weight, r.head.bias, r.transform)]
    logps, spread, kl = _LinearHead.apply(targets, entropy, kernel, *parts)
    return Outputs(logps=logps, kl=kl, entropy=spread)


def _find_kernel(policy: Readout, targets: Tensor) -> Kernel:
    """The kernel for a plain head: what `auto` stands for is measured on some of its rows."""
    if policy.kernel != "auto" or not len(targets):
        return policy.kernel
    head, hidden = policy.head, policy.hidden.detach()
    assert isinstance(head, nn.Linear)  # noqa: S101  (it is plain)
    bias: Tensor | None = head.bias

    def run(kernel: Kernel) -> tuple[Tensor, Tensor]:
        rows = torch.arange(SAMPLE, device=targets.device) % len(targets)
        leaf, frozen = hidden[rows].requires_grad_(), (head.weight.detach(), None if bias is None else bias.detach())
        with torch.enable_grad():
            logps, *_ = _LinearHead.apply(targets[rows], False, kernel, leaf, *frozen, policy.transform)
        return logps.detach(), *torch.autograd.grad(logps.sum(), leaf)

    return choose_kernel((hidden.device, hidden.dtype, head.weight.shape, bias is None, policy.transform), run, hidden)


def _module_outputs(policy: Readout, targets: Tensor, reference: Readout | None, entropy: bool) -> Outputs:
    count = len(targets)
    rows = max(1, min(-(-count // 8), _MODULE_ELEMENTS // getattr(policy.head, "out_features", 2**17)))

    def outputs(ids: Tensor, block: Tensor, ref_block: Tensor | None = None) -> tuple[Tensor, ...]:
        own = torch.log_softmax(policy.logits(block), dim=-1)
        found = [own.gather(1, ids[:, None])[:, 0]]
        if entropy:
            found.append(-(own.exp() * own).sum(-1))
        if reference is not None and ref_block is not None:
            with torch.no_grad():
                ref = torch.log_softmax(reference.logits(ref_block), dim=-1)
            found.append((ref.exp() * (ref - own)).sum(-1))
        return tuple(found)

    columns = [targets, policy.hidden] + ([] if reference is None else [reference.hidden])
    blocks = zip(*(torch.split(column, rows) for column in columns), strict=True)
    parts = [checkpoint(outputs, *block, use_reentrant=False) for block in blocks]
    whole = [torch.cat(column) for column in zip(*parts, strict=True)]
    kl = None if reference is None else whole[-1]
    return Outputs(logps=whole[0], kl=kl, entropy=whole[1] if entropy else None)


class _Running:
    """Of the blocks so far, all [M]: logsumexp, means under that softmax of what came with them, the target's logit."""

    def __init__(self, targets: Tensor, dtype: torch.dtype) -> None:
        self.targets = targets
        self.mean = torch.zeros(targets.shape, dtype=dtype, device=targets.device)
        self.logsumexp, self.target = torch.full_like(self.mean, float("-inf")), torch.zeros_like(self.mean)

    def find(self, logits: Tensor, first: int, last: int) -> None:
        """Keep the logits of the targets that the block has."""
        inside, column = _columns(self.targets, first, last)
        self.target = torch.where(inside, logits.gather(1, column)[:, 0], self.target)

    def add_raw(self, raw: Tensor, first: int, transform: HeadTransform, kernels: ModuleType) -> None:
        """The same as `find` and `add`, with the logits as values, from the head's own output."""
        kernels.add_block(raw, self.targets, first, transform, self.logsumexp, self.mean, self.target)

    def add(self, logits: Tensor, values: Tensor | None = None) -> None:
        """Take a block [M, columns] of logits, and of values to average; overwrites both."""
        top = logits.amax(1)
        mass = logits.sub_(top[:, None]).exp_()
        sums = mass.sum(1)
        own = top + sums.log()
        total = torch.logaddexp(self.logsumexp, own)
        if values is not None:
            mean = values.mul_(mass).sum(1) / sums
            self.mean = torch.exp(self.logsumexp - total) * self.mean + torch.exp(own - total) * mean
        self.logsumexp = total


class _Blocks:
    """A model's final logits block by block, in at least float32, in one buffer where the product can write to it."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: HeadTransform) -> None:
        self.hidden, self.weight, self.bias, self.transform = hidden, weight, bias, transform
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.fast = cpu_matmul.takes(hidden, weight)
        size = 0 if self.fast else len(hidden) * _block_size(weight)
        self._raw = torch.empty(size, dtype=hidden.dtype, device=hidden.device)
        self._final = self._raw if self.dtype == hidden.dtype else self._raw.new_empty(size, dtype=self.dtype)

    def raw(self, first: int, last: int) -> Tensor:
        """The head's own output for the block, in its dtype; it may be overwritten, and the next block does."""
        weight = self.weight[first:last].T
        if self.fast:
            made = cpu_matmul.product(self.hidden, weight)
            return made if self.bias is None else made.add_(self.bias[first:last])
        raw = self._part(self._raw, last - first)
        if self.bias is None:
            return torch.mm(self.hidden, weight, out=raw)
        return torch.addmm(self.bias[first:last], self.hidden, weight, out=raw)

    def read(self, first: int, last: int) -> Tensor:
        """The block's logits; they may be changed in place, and the next block overwrites them."""
        raw = self.raw(first, last)
        return self.transform(raw if raw.dtype == self.dtype else self._part(self._final, last - first).copy_(raw))

    def _part(self, buffer: Tensor, columns: int) -> Tensor:
        return buffer[: len(self.hidden) * columns].view(-1, columns)


class _LinearHead(torch.autograd.Function):
    """log softmax(y) at the target, entropy of p = softmax(y), and sum of q (log q - log p), q the reference's.

    y = f(h W' + b), f a HeadTransform. Entropy and divergence are None where they are not asked for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        targets: Tensor, entropy: bool, kernel: Kernel,
        hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: HeadTransform,
        ref_hidden: Tensor | None = None, ref_weight: Tensor | None = None, ref_bias: Tensor | None = None,
        ref_transform: HeadTransform | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        blocks = _Blocks(hidden, weight, bias, transform)
        own, ref = _Running(targets, blocks.dtype), _Running(targets, blocks.dtype)
        reference = None
        if ref_hidden is not None and ref_weight is not None and ref_transform is not None:
            reference = _Blocks(ref_hidden, ref_weight, ref_bias, ref_transform)
        ctx.kernels = kernels_for(kernel, hidden) if reference is None else None
        for first, last in _spans(weight):
            if ctx.kernels is not None:
                own.add_raw(blocks.raw(first, last), first, transform, ctx.kernels)
                continue
            logits = blocks.read(first, last)
            own.find(logits, first, last)
            if reference is not None:  # the mean of y' - y under the reference
                ref_logits = reference.read(first, last)
                ref.add(ref_logits, ref_logits - logits)
            own.add(logits, logits.clone() if entropy else None)  # the mean of y
        ctx.save_for_backward(
            targets, hidden, weight, bias, own.logsumexp, own.mean, ref_hidden, ref_weight, ref_bias, ref.logsumexp
        )
        ctx.transforms = transform, ref_transform
        ctx.set_materialize_grads(False)
        spread = own.logsumexp - own.mean if entropy else None
        kl = None if reference is None else ref.mean - ref.logsumexp + own.logsumexp
        return own.target - own.logsumexp, spread, kl

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, entropy_grad: Tensor | None, kl_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """dy = a (1[target] - p) + b (p - q) - c p (log p + H) for the gradients a, b, c of log-prob, KL, entropy."""
        targets, hidden, weight, bias, logsumexp, mean, *reference, ref_logsumexp = ctx.saved_tensors
        transform, ref_transform = ctx.transforms
        blocks = _Blocks(hidden, weight, bias, transform)
        ref_hidden, ref_weight, ref_bias = reference
        ref_blocks = None if kl_grad is None else _Blocks(ref_hidden, ref_weight, ref_bias, ref_transform)
        grad = torch.zeros_like(logsumexp) if grad is None else grad
        alone = kl_grad is None and entropy_grad is None

        def d_raw(first: int, last: int) -> Tensor:
            if ctx.kernels is not None and alone:
                raw: Tensor = ctx.kernels.to_gradient(blocks.raw(first, last), targets, first, transform, logsumexp)
                return raw
            logits = blocks.read(first, last)
            slope = transform.derivative(logits)
            d_logits = d_final(logits, first, last)
            return d_logits.mul_(slope) if isinstance(slope, Tensor) or slope != 1 else d_logits

        def d_final(logits: Tensor, first: int, last: int) -> Tensor:
            inside, column = _columns(targets, first, last)
            log_p = logits.sub_(logsumexp[:, None])
            if alone:  # p - 1[target]; -a multiplies rows of [M, H] later, which are shorter than these
                return log_p.exp_().scatter_add_(1, column, inside.to(log_p.dtype).neg_()[:, None])
            factor = -grad if kl_grad is None else kl_grad - grad
            d_logits = torch.exp(log_p)
            if entropy_grad is not None:
                log_p.add_((logsumexp - mean)[:, None]).mul_(-entropy_grad[:, None]).add_(factor[:, None])
                d_logits.mul_(log_p)
            else:
                d_logits.mul_(factor[:, None])
            if ref_blocks is not None and kl_grad is not None:
                q = ref_blocks.read(first, last).sub_(ref_logsumexp[:, None]).exp_()
                d_logits.sub_(q.mul_(kl_grad[:, None]))
            return d_logits.scatter_add_(1, column, torch.where(inside, grad, 0)[:, None])

        grads = _pull_back(blocks, ctx.needs_input_grad[3:6], d_raw, -grad if alone else None)
        return None, None, None, *grads, None, None, None, None, None


def _pull_back(
    blocks: _Blocks,
    wants: tuple[bool, ...],
    d_raw: Callable[[int, int], Tensor],
    factor: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """From the gradient dz of the head's output, block by block: dh = dz W, dW = dz' h.

    `d_raw(first, last)` gives dz of one block, to be multiplied by `factor` [M] where there is one. `wants` says which
    of hidden, weight and bias need a gradient.
    """
    hidden, weight, bias = blocks.hidden, blocks.weight, blocks.bias
    d_hidden = torch.zeros(hidden.shape, dtype=blocks.dtype, device=hidden.device) if wants[0] else None
    d_weight = torch.empty_like(weight) if wants[1] else None
    d_bias = torch.empty_like(bias) if bias is not None and wants[2] else None
    scaled = hidden if factor is None else (hidden * factor[:, None]).to(hidden.dtype)
    for first, last in _spans(weight):
        d_logits = d_raw(first, last)
        if d_bias is not None:
            exact = d_logits.to(blocks.dtype)
            d_bias[first:last] = (exact.sum(0) if factor is None else factor @ exact).to(d_bias.dtype)
        d_logits = d_logits.to(hidden.dtype)  # the products below add up in float32 inside
        if d_hidden is not None and d_hidden.dtype == d_logits.dtype and not blocks.fast:
            d_hidden.addmm_(d_logits, weight[first:last])
        elif d_hidden is not None:
            d_hidden += cpu_matmul.product(d_logits, weight[first:last])
        if d_weight is not None and blocks.fast:
            d_weight[first:last] = cpu_matmul.product(d_logits.T, scaled)
        elif d_weight is not None:
            torch.mm(d_logits.T, scaled, out=d_weight[first:last])
    if d_hidden is not None and factor is not None:
        d_hidden.mul_(factor[:, None])
    return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias


def _block_size(weight: Tensor) -> int:
    """At least 8 blocks, unless the vocabulary is tiny; the same for every batch."""
    return max(256, min(_CPU_BLOCK if weight.device.type == "cpu" else _BLOCK, -(-len(weight) // 8)))


def _spans(weight: Tensor) -> Iterator[tuple[int, int]]:
    vocabulary, size = len(weight), _block_size(weight)
    for first in range(0, vocabulary, size):
        yield first, min(first + size, vocabulary)


def _columns(targets: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in the block, [M] bool, and their column there, [M, 1] (0 for the others)."""
    inside = (targets >= first) & (targets < last)
    return inside, torch.where(inside, targets - first, 0)[:, None]
