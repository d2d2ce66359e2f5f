"""Attention over a packed micro-batch: a segment sees its parent and itself, causally, and nothing else.

Registered with transformers as `pyprefopt_packed`: under that name Hugging Face builds no mask, and the model kwarg
`packed_layout` reaches the function below in every layer. The loop runs over documents, so a document's numbers never
depend on what another document in the pack says. Sliding windows and soft caps are honoured; everything else that an
architecture may ask for is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pyprefopt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyprefopt.types import PackedBatch

ATTENTION_NAME = "pyprefopt_packed"
LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})  # masks that the function below knows how to build

_QUERY_CHUNK = 256  # query rows whose masked scores exist at once, where SDPA's own causal rule is not enough

# What Hugging Face passes along that does not change the attention.
_HARMLESS = frozenset(
    {"position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions", "output_hidden_states",
     "return_dict"}
)  # fmt: skip
_REASONS = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a learned position bias",
    "head_mask": "head masks",
    "cu_seq_lens_q": "another description of the packing",
    "attention_mask": "a mask besides the packed layout",
}


@dataclass(frozen=True)
class Run:
    """Neighbouring queries that attend in one call: to `parent` (may be empty), then causally to themselves."""

    start: int  # first query, position in [0, N)
    stop: int
    parent_start: int = 0  # the keys that stand before the run's own; empty where both are equal
    parent_stop: int = 0


@dataclass(frozen=True)
class Rule:
    """One layer's attention: softmax of cap(scaling * q k') over the positions that the window lets through."""

    scaling: float
    window: int | None = None  # position i sees i - window < j <= i
    softcap: float | None = None  # cap * tanh(score / cap)


@dataclass(frozen=True)
class PackedLayout:
    """The documents of a micro-batch as plain integers, read from the device once a forward, not once a layer."""

    runs: tuple[Run, ...]
    size: int  # N

    @classmethod
    def of(cls, batch: PackedBatch) -> PackedLayout:
        """The layout of `batch`; DataError where offsets or parents break their rule."""
        return cls.build(batch.segment_offsets.tolist(), batch.segment_parent.tolist(), len(batch.input_ids))

    @classmethod
    def build(cls, offsets: list[int], parents: list[int], size: int) -> PackedLayout:
        """From segment offsets [S+1], parents [S] and N. A response right behind its prompt joins the prompt's run."""
        _check_segments(offsets, parents, size)
        runs: list[Run] = []
        for segment, parent in enumerate(parents):
            start, stop = offsets[segment], offsets[segment + 1]
            if start == stop:
                continue
            if parent < 0:
                runs.append(Run(start, stop))
            elif offsets[parent] < offsets[parent + 1] == start:
                runs[-1] = Run(offsets[parent], stop)  # the parent is the run just before
            else:
                runs.append(Run(start, stop, offsets[parent], offsets[parent + 1]))
        return cls(tuple(runs), size)


def _check_segments(offsets: list[int], parents: list[int], size: int) -> None:
    covered = bool(offsets) and offsets[0] == 0 and offsets[-1] == size
    if not covered or any(b < a for a, b in pairwise(offsets)):
        raise DataError(f"segment_offsets must rise from 0 to the number of input tokens ({size}), got {offsets}")
    if len(parents) != len(offsets) - 1:
        raise DataError(f"segment_parent must have one entry a segment ({len(offsets) - 1}), got {len(parents)}")
    for segment, parent in enumerate(parents):
        if parent >= 0 and (parent >= segment or parents[parent] >= 0):
            raise DataError(f"segment_parent[{segment}] must be -1 or an earlier segment without parent, got {parent}")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: query [1, heads, N, D], key and value [1, key heads, N, D] -> [1, N, heads, D].

    `sliding_window` w lets position i see positions j with i - w < j <= i of its own document, as in Hugging Face.
    Raises ConfigError for what it cannot honour.
    """
    rule = Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    _refuse_options(module, {"attention_mask": attention_mask, **kwargs}, dropout, is_causal)
    _refuse_shapes(module, query, key, rule)
    if packed_layout is None:
        packed_layout = PackedLayout((Run(0, query.shape[2]),), query.shape[2])  # a plain call: one document
    if packed_layout.size != query.shape[2]:
        raise DataError(f"packed_layout covers {packed_layout.size} tokens, the model was given {query.shape[2]}")
    groups = query.shape[1] // key.shape[1]  # grouped-query attention: query heads of one key head
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    runs = packed_layout.runs
    # Split once: the gradient of a slice is as long as the whole pack, and there would be one a document.
    queries, keys, values = (torch.split(t, [run.stop - run.start for run in runs], dim=2) for t in (query, key, value))
    outputs = [_attend(queries[i], _keys(keys, runs, i), _keys(values, runs, i), rule) for i in range(len(runs))]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


def _keys(parts: tuple[Tensor, ...], runs: tuple[Run, ...], index: int) -> Tensor:
    """What run `index` attends to: its parent, which another run begins with, then itself, [1, heads, K, D]."""
    run = runs[index]
    if run.parent_start == run.parent_stop:
        return parts[index]
    parent = next(part for part, other in zip(parts, runs, strict=True) if other.start == run.parent_start)
    return torch.cat([parent[:, :, : run.parent_stop - run.parent_start], parts[index]], dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """The last L of K positions attend to all of them: [1, heads, L, D]."""
    length, total = query.shape[2], key.shape[2]
    if rule.window is not None and rule.window >= total:
        rule = replace(rule, window=None)  # the document is shorter than the window
    if rule.window is None and rule.softcap is None:
        if length == total:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=rule.scaling)
        mask = causal_lower_right(length, total)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=rule.scaling)
    return torch.cat(list(_chunks(query, key, value, rule)), dim=2)


def _chunks(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Iterator[Tensor]:
    """Windows and soft caps, a block of query rows at a time, each with only the keys that its rows may see."""
    length, total = query.shape[2], key.shape[2]
    recompute = torch.is_grad_enabled() and length > _QUERY_CHUNK  # else all blocks' scores would be kept: L x K
    for first in range(0, length, _QUERY_CHUNK):
        last = min(first + _QUERY_CHUNK, length)
        q0, q1 = total - length + first, total - length + last  # positions in the document
        k0 = 0 if rule.window is None else max(0, q0 - rule.window + 1)
        rows = torch.arange(q0, q1, device=query.device)[:, None]
        columns = torch.arange(k0, q1, device=query.device)
        seen = columns <= rows
        if rule.window is not None:
            seen &= columns > rows - rule.window
        block = query[:, :, first:last], key[:, :, k0:q1], value[:, :, k0:q1]
        if rule.softcap is None:
            yield F.scaled_dot_product_attention(*block, attn_mask=seen, scale=rule.scaling)
        elif recompute:
            yield checkpoint(_capped, *block, seen, rule, use_reentrant=False, preserve_rng_state=False)
        else:
            yield _capped(*block, seen, rule)


def _capped(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, rule: Rule) -> Tensor:
    """Softmax of the capped scores over the positions in `seen`; the softmax in at least float32."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = torch.matmul(query, key.transpose(2, 3)).to(dtype) * rule.scaling
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1).to(query.dtype), value)


def _refuse_options(module: nn.Module, options: dict[str, Any], dropout: float, is_causal: bool | None) -> None:
    """ConfigError for an option that packed attention would have to ignore."""
    name = type(module).__name__
    for option, value in options.items():
        if value is None or value is False or option in _HARMLESS:
            continue
        what = _REASONS.get(option, "which packed attention does not know")
        raise ConfigError(
            f"{name} asks for {option} ({what}), which packed attention does not honour; use another model"
        )
    if dropout:
        raise ConfigError(f"{name}: attention dropout must be 0, got {dropout}; load the model with load_model")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ConfigError(f"{name} is not causal; packed attention serves causal language models only")


def _refuse_shapes(module: nn.Module, query: Tensor, key: Tensor, rule: Rule) -> None:
    """ConfigError for a batch dimension, a cache, cross-attention, or a window that gets lost on the way."""
    name = type(module).__name__
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        shapes = f"{tuple(query.shape)} and {tuple(key.shape)}"
        raise ConfigError(f"{name}: query and key must be one pack of equal length, got {shapes}; no cache, no batches")
    if rule.window is None and _window_in_config(module):
        raise ConfigError(f"{name} has a sliding window in its config that does not reach the attention function")


def _window_in_config(module: nn.Module) -> bool:
    """Whether the config gives this layer a sliding window."""
    config = getattr(module, "config", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        index = getattr(module, "layer_idx", None)
        return index is not None and layer_types[index] == "sliding_attention"
    return getattr(config, "sliding_window", None) is not None and bool(getattr(config, "use_sliding_window", True))


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, packed_attention)
