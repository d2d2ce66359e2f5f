"""Float32 matrix products on the CPU through oneDNN, where PyTorch's own ones leave half of the processor unused.

PyTorch gives float32 products to MKL, which takes AVX2 code on processors that are not Intel's; oneDNN, which PyTorch
brings for its compiler, has AVX-512 code for all of them: twice as fast there, and as exact. Everything else (GPUs,
bfloat16, compiled models, other processors) goes PyTorch's usual way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@cache
def _available() -> bool:
    """Of this machine and PyTorch alone, so that a run has the same products from its first to its last step."""
    return (
        bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def takes(*operands: Tensor) -> bool:
    """Whether the product of these goes through oneDNN."""
    if torch.compiler.is_compiling() or not _available():
        return False
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 for t in operands)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, [M, K] and [K, N] -> [M, N], without a gradient; either may be a transposed view."""
    return _linear(left, right.T, None) if takes(left, right) else left @ right


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b, [..., K], [N, K], [N] -> [..., N], without a gradient."""
    return _linear(inputs, weight, bias) if takes(inputs, weight) else F.linear(inputs, weight, bias)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return made


class _Linear(torch.autograd.Function):
    """x W' + b: [M, K], [N, K], [N] -> [M, N], no view, which what follows may change in place.

    As PyTorch's own, it keeps nothing that no gradient needs: inputs of frozen weights may be changed in place, too.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants = ctx.needs_input_grad
        ctx.save_for_backward(inputs if wants[1] else None, weight if wants[0] else None)
        ctx.has_bias = bias is not None
        return _linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g W, dW = g' x, db = the sum of g over rows."""
        inputs, weight = ctx.saved_tensors
        wants = ctx.needs_input_grad
        d_inputs = product(grad, weight) if wants[0] else None
        d_weight = product(grad.T, inputs) if wants[1] else None
        return d_inputs, d_weight, grad.sum(0) if ctx.has_bias and wants[2] else None


class FastLinear(nn.Linear):
    """`nn.Linear` with the products above, in both directions."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Linear's name)
        """x W' + b."""
        if takes(input, self.weight):
            rows: Tensor = _Linear.apply(input.reshape(-1, input.shape[-1]), self.weight, self.bias)
            return rows.view(*input.shape[:-1], -1)
        return F.linear(input, self.weight, self.bias)


def use_fast_products(model: nn.Module) -> None:
    """Let every plain linear layer below `model` take the products above. Weights, names and hooks stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
