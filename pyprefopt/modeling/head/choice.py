"""What reads the head's output, PyTorch's operators or Triton's kernels: by name, or by a measurement where it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from pyprefopt.errors import ConfigError

Kernel = Literal["auto", "torch", "triton"]
Run = Callable[[Kernel], tuple[Tensor, Tensor]]  # log-probs [M], and the gradient [M, H] of their sum for hidden

SAMPLE = 2048  # rows of hidden states that the measurement reads
# Largest difference of a log-prob in nats, and of the gradient relative to its norm; bfloat16 rounds a block's
# gradient before the products, whichever kernel computed it.
TOLERANCE = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (1e-3, 2e-2)}

logger = logging.getLogger(__name__)
chosen_kernels: dict[object, Kernel] = {}


def check_kernel(kernel: Kernel) -> None:
    """ConfigError where `kernel` cannot run on this machine."""
    if kernel == "triton":
        _required().check_here()


def kernels_for(kernel: Kernel, hidden: Tensor) -> ModuleType | None:
    """The module of Triton kernels, where they are wanted and can compute this; None: PyTorch's operators do."""
    if kernel != "triton":
        return None
    kernels = _required()
    return kernels if kernels.take(hidden) else None


def choose_kernel(kind: object, run: Run, hidden: Tensor) -> Kernel:
    """What `auto` stands for, for heads of one `kind` (anything hashable); measured and logged once for each.

    `run` reads a part of what is to be read. Off a GPU, without Triton, and in inference mode, which has no gradients,
    nothing is measured, and it is torch.
    """
    if not _on_gpu(hidden) or torch.is_inference_mode_enabled():
        return "torch"
    if (kernels := _triton()) is None or not kernels.take(hidden):
        return "torch"
    if kind not in chosen_kernels:
        chosen_kernels[kind], reason = race(run, hidden.dtype)
        logger.info("head kernel: %s, because %s", chosen_kernels[kind], reason)
    return chosen_kernels[kind]


def race(run: Run, dtype: torch.dtype) -> tuple[Kernel, str]:
    """The faster kernel, and why. Triton's is not taken where it fails, or gives other numbers than torch."""
    logps, gradient = run("torch")
    try:
        own_logps, own_gradient = run("triton")
    except Exception as error:  # whatever a kernel that cannot run here raises
        return "torch", f"triton failed with {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    apart = (own_logps - logps).abs().max().item()
    gradient_apart = ((own_gradient.float() - gradient.float()).norm() / gradient.float().norm()).item()
    limit, gradient_limit = TOLERANCE[dtype]
    if not (apart <= limit and gradient_apart <= gradient_limit):  # also where one is NaN
        return "torch", (
            f"triton differs from it by {apart:.2g} nats and {gradient_apart:.2g} of the gradient, more than "
            f"{limit:g} and {gradient_limit:g}"
        )
    ratio = _seconds(lambda: run("torch")) / _seconds(lambda: run("triton"))
    if ratio > 1:
        return "triton", f"torch takes {ratio:.2f} times as long here"
    return "torch", f"triton takes {1 / ratio:.2f} times as long here"


def _seconds(run: Callable[[], object]) -> float:
    """The best of 5; `run` has run before."""
    times = []
    for _ in range(5):
        _wait()
        started = time.perf_counter()
        run()
        _wait()
        times.append(time.perf_counter() - started)
    return min(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _on_gpu(hidden: Tensor) -> bool:
    return hidden.is_cuda


def _triton() -> ModuleType | None:
    """The kernels' module; None where the package triton is not installed."""
    try:
        from pyprefopt.modeling.head import triton as kernels
    except ImportError:
        return None
    return kernels


def _required() -> ModuleType:
    """The kernels' module; ConfigError without the package triton."""
    kernels = _triton()
    if kernels is None:
        raise ConfigError(
            "head_kernel triton needs the package triton, which PyTorch for CUDA brings; set head_kernel torch"
        )
    return kernels
