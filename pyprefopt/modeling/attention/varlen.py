"""Packed attention by a fused kernel for documents of varying length: PyTorch's own, or the flash-attn package's.

Such a kernel knows whole documents, the causal rule aligned at their ends. A response that sees a prompt elsewhere in
the pack becomes a document with fewer queries than keys: the keys and values of its prompt are gathered before its own,
which is one call, exact, and leaves windows as they are. Both kernels are recognised by their arguments' names, because
these differ between versions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.modeling.attention.layout import Documents, PackedLayout, Rule


@dataclass(frozen=True)
class Kernel:
    """A function of query [Q, heads, D], key and value [K, key heads, D], and the documents' offsets."""

    call: Callable[..., Any]
    names: frozenset[str]  # of its arguments

    @classmethod
    def of(cls, call: Callable[..., Any]) -> Kernel:
        """With the names of the arguments of `call`."""
        return cls(call, frozenset(inspect.signature(call).parameters))

    def missing(self, window: bool, softcap: bool) -> str | None:
        """What this version cannot do of what a layer asks; None: nothing."""
        if not self.names & {"scale", "softmax_scale"}:
            return "this version takes no scale"
        if window and "window_size" not in self.names:
            return "this version has no sliding windows"
        return "it has no soft caps" if softcap and "softcap" not in self.names else None

    def options(self, rule: Rule, window: int | None, grouped: bool) -> dict[str, Any]:
        """Its keyword arguments for a causal rule, `window` None where no document is longer than that."""
        options: dict[str, Any] = {"scale" if "scale" in self.names else "softmax_scale": rule.scaling}
        if "window_size" in self.names:
            options["window_size"] = (-1 if window is None else window - 1, 0)  # how far to the left, to the right
        for causal in ("causal", "is_causal"):
            if causal in self.names:
                options[causal] = True
        if rule.softcap is not None:
            options["softcap"] = rule.softcap
        if "enable_gqa" in self.names:
            options["enable_gqa"] = grouped
        return options

    @property
    def groups_heads(self) -> bool:
        """Whether it serves several query heads with one key head by itself."""
        return bool(self.names & {"enable_gqa", "softcap"})  # flash-attn always does


@lru_cache
def torch_kernel() -> Kernel | None:
    """`torch.nn.attention.varlen.varlen_attn`; None before PyTorch 2.10."""
    return _find("torch.nn.attention.varlen", "varlen_attn")


@lru_cache
def flash_kernel() -> Kernel | None:
    """`flash_attn.flash_attn_varlen_func`, version 2.6 or later; None where the package is not installed."""
    return _find("flash_attn", "flash_attn_varlen_func")


def _find(module: str, name: str) -> Kernel | None:
    try:
        return Kernel.of(getattr(import_module(module), name))
    except (ImportError, AttributeError):  # ImportError: also a package built for another PyTorch
        return None


def attend(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule) -> Tensor:
    """Query [1, heads, N, D], key and value [1, key heads, N, D] -> [1, N, heads, D]."""
    documents = layout.documents(query.device)
    groups = query.shape[1] // key.shape[1]
    states = [_gather(x[0].transpose(0, 1), documents) for x in (key, value)]
    if groups > 1 and not kernel.groups_heads:
        states = [x.repeat_interleave(groups, dim=1) for x in states]
    window = None if rule.window is None or rule.window >= documents.longest_key else rule.window
    output = kernel.call(
        query[0].transpose(0, 1), *states, documents.query_offsets, documents.key_offsets,
        documents.longest_query, documents.longest_key, **kernel.options(rule, window, groups > 1),
    )  # fmt: skip
    return output[None]  # type: ignore[no-any-return]


def _gather(states: Tensor, documents: Documents) -> Tensor:
    """[N, heads, D] -> [keys, heads, D], a prompt's again for every response that needs it."""
    if documents.gather is None:
        return states
    # As an embedding: the gradients of a repeated position are added up in one order, and in float32.
    return F.embedding(documents.gather, states.flatten(1)).view(-1, *states.shape[1:])
