"""Which way computes packed attention, by one rule: the first that serves what the layer asks for on this device.

A way gives the reason why it cannot serve. One that has not been seen to work in this process is first tried on a small
made-up pack, values and gradients, against the loop in float32: what cannot run, or gives other numbers, is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.modeling.attention import flex, loop, varlen
from pyprefopt.modeling.attention.layout import PackedLayout, Rule

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

AMPERE = (8, 0)  # the first generation of GPUs that the fused kernels are made for
# Largest difference from the loop in the trial, for values and gradients of size 1; a wrong mask is off by 0.3 or more.
TOLERANCE = {torch.bfloat16: 0.08, torch.float32: 0.01}


@dataclass(frozen=True)
class Demand:
    """What a layer asks for."""

    device: torch.device
    dtype: torch.dtype
    head_size: int
    heads: int
    key_heads: int
    rule: Rule

    @classmethod
    def of(cls, query: Tensor, key: Tensor, rule: Rule) -> Demand:
        """From query [1, heads, N, D] and key [1, key heads, N, D]."""
        return cls(query.device, query.dtype, query.shape[-1], query.shape[1], key.shape[1], rule)


class Way(NamedTuple):
    """A way to compute packed attention."""

    attend: Callable[[Tensor, Tensor, Tensor, PackedLayout, Rule], Tensor]  # [1, heads, N, D] x 3 -> [1, N, heads, D]
    refuses: Callable[[Demand], str | None]  # why it cannot serve; None: it can
    reason: str  # why it comes before those below it


def _nothing(_demand: Demand) -> str | None:
    return None


def _refuses_rule(rule: Rule) -> str | None:
    """What no kernel but the loop knows."""
    if rule.sinks:
        return "it knows no attention sinks"
    return "it knows no attention in chunks" if rule.chunk is not None else None


def _refuses_fused(kernel: Callable[[], varlen.Kernel | None], missing: str, demand: Demand) -> str | None:
    """A kernel for whole documents."""
    if reason := _refuses_kind(demand.device.type) or _refuses_rule(demand.rule):
        return reason
    found = kernel()
    if found is None:
        return missing
    rule, size = demand.rule, demand.head_size
    if reason := found.missing(rule.window is not None, rule.softcap is not None):
        return reason
    if reason := _refuses_age(demand.device):
        return reason
    if demand.dtype != torch.bfloat16:
        return f"it computes in bfloat16, and the model is in {_name(demand.dtype)}"
    return f"its heads have a multiple of 8 and at most 256 numbers, here {size}" if size % 8 or size > 256 else None


def _refuses_flex(demand: Demand) -> str | None:
    if reason := _refuses_kind(demand.device.type) or _refuses_rule(demand.rule) or _refuses_age(demand.device):
        return reason
    if demand.dtype not in TOLERANCE:
        return f"it computes in bfloat16 and float32, and the model is in {_name(demand.dtype)}"
    return f"its heads have 16 to 256 numbers, here {demand.head_size}" if not 16 <= demand.head_size <= 256 else None


def _refuses_kind(device: str) -> str | None:
    return None if device == "cuda" else f"it needs a CUDA device, and this is {device}"


def _refuses_age(device: torch.device) -> str | None:
    own = torch.cuda.get_device_capability(device)
    return None if own >= AMPERE else f"it needs compute capability 8.0, and this GPU has {own[0]}.{own[1]}"


def _document_way(kernel: Callable[[], varlen.Kernel | None], missing: str, reason: str) -> Way:
    def attend(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule) -> Tensor:
        found = kernel()
        assert found is not None  # noqa: S101  (it has not refused)
        return varlen.attend(found, query, key, value, layout, rule)

    return Way(attend, partial(_refuses_fused, kernel, missing), reason)


# In the order in which `auto` asks them.
WAYS: dict[str, Way] = {
    "flash": _document_way(
        varlen.flash_kernel, "the package flash-attn is not installed", "flash-attn is installed"
    ),
    "varlen": _document_way(
        varlen.torch_kernel, "this PyTorch has no varlen_attn", "PyTorch has a fused kernel for this"
    ),
    "flex": Way(flex.attend, _refuses_flex, "one compiled kernel serves what the layer asks for"),
    "loop": Way(loop.attend, _nothing, "it serves every device and precision"),
}  # fmt: skip
UNPACKED = "unpacked"  # no packed attention: each document goes through transformers' own forward
CHOICES = ("auto", *WAYS, UNPACKED)
PLAIN = "plain"  # the loop, not logged: for probes, whose way nobody has asked for


def check_way(wanted: str) -> str:
    """The setting `attention`; ConfigError where there is no such way."""
    if wanted not in CHOICES:
        hint = did_you_mean(wanted, CHOICES)
        raise ConfigError(f"attention must be one of {', '.join(CHOICES)}, got {wanted!r}{hint}")
    return wanted


def check_here(wanted: str) -> None:
    """ConfigError where this machine has no device on which the way `wanted` could serve any model."""
    if check_way(wanted) not in ("auto", "loop", UNPACKED) and not torch.cuda.is_available():
        raise ConfigError(
            f"attention must be a way that serves this machine, got {wanted!r}: {_refuses_kind('cpu')}; set attention "
            "auto, or loop, which serves everything"
        )


@lru_cache
def choose(wanted: str, demand: Demand) -> Way:
    """The way for a layer, logged once for each kind of layer.

    Raises:
        ConfigError: `wanted` is not `auto`, and cannot serve.
    """
    if wanted == PLAIN:
        return WAYS["loop"]
    refused: list[str] = []
    for name, way in WAYS.items():
        if wanted not in ("auto", name):
            continue
        reason = way.refuses(demand)
        if reason is None and name != "loop":
            reason = trial(way, demand)
        if reason is None:
            because = f"because {way.reason}" if wanted == "auto" else "as asked"
            logger.info("attention: %s, %s", name, because)
            for line in refused:
                logger.debug("attention: %s", line)
            return way
        refused.append(f"not {name}: {reason}")
    what = f"window {demand.rule.window}, soft cap {demand.rule.softcap}, head size {demand.head_size}"
    raise ConfigError(
        f"attention must be a way that serves this model ({_name(demand.dtype)} on {demand.device.type}, {what}), got "
        f"{wanted!r}: {refused[0].partition(': ')[2]}; set attention auto, or loop, which serves everything"
    )


def trial(way: Way, demand: Demand) -> str | None:
    """Why `way` cannot be trusted with `demand`: its error, or its difference from the loop. None: it can."""
    tolerance = TOLERANCE.get(demand.dtype, 1e-6)
    rule = demand.rule if demand.rule.window is None else replace(demand.rule, window=100)
    kept_as_they_are = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)  # inside a checkpoint, too
    for name, offsets, parents in (("shared", (0, 150, 240, 310), (-1, 0, 0)), ("separate", (0, 150, 400), (-1, -1))):
        layout = PackedLayout.build(list(offsets), list(parents), offsets[-1])
        states = _states(demand, layout.size)
        try:
            with torch.enable_grad(), kept_as_they_are:
                ours = _run(way.attend, states, layout, rule)
                theirs = _run(
                    loop.attend, [x.to(torch.promote_types(x.dtype, torch.float32)) for x in states], layout, rule
                )
        except Exception as error:  # whatever a kernel that cannot run here raises
            return f"its trial failed with {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        worst = max((a.to(b.dtype) - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
        if not worst <= tolerance:  # also where it is NaN
            return f"in its trial ({name} layout) it differs from the loop by {worst:.2g}, more than {tolerance:g}"
    return None


def _run(attend: Callable[..., Tensor], states: list[Tensor], layout: PackedLayout, rule: Rule) -> list[Tensor]:
    """Values, and the gradients of query, key and value."""
    leaves = [x.detach().requires_grad_() for x in states]
    output = attend(*leaves, layout, rule)
    direction = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.device, output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, direction)]


def _states(demand: Demand, size: int) -> list[Tensor]:
    """Query, key and value, the same ones every time; torch's generators are left alone."""
    generator = torch.Generator().manual_seed(0)
    heads = (demand.heads, demand.key_heads, demand.key_heads)
    drawn = [torch.randn(1, n, size, demand.head_size, generator=generator) for n in heads]
    return [x.to(demand.device, demand.dtype) for x in drawn]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
