"""Packed attention as a loop of SDPA calls over the documents: for every device, precision and rule.

A document's numbers never depend on another document in the pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.modeling.attention.layout import PackedLayout, Rule, Run

_QUERY_CHUNK = 256  # query rows whose masked scores exist at once, where SDPA's own causal rule is not enough


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule, sinks: Tensor | None = None
) -> Tensor:
    """Query [1, heads, N, D], key and value [1, key heads, N, D], sinks [heads] -> [1, N, heads, D]."""
    groups = query.shape[1] // key.shape[1]  # grouped-query attention: query heads of one key head
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    runs = layout.runs
    # Split once: the gradient of a slice is as long as the whole pack, and there would be one a document.
    queries, keys, values = (torch.split(t, [run.stop - run.start for run in runs], dim=2) for t in (query, key, value))
    seen = zip(queries, _seen(keys, runs), _seen(values, runs), strict=True)
    outputs = [_attend(*parts, rule, sinks) for parts in seen]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def _seen(parts: Sequence[Tensor], runs: tuple[Run, ...]) -> list[Tensor]:
    """What each run attends to: its parent, which another run begins with, then itself, [1, heads, K, D]."""
    beginning = {run.start: part for run, part in zip(runs, parts, strict=True)}

    def seen(run: Run, own: Tensor) -> Tensor:
        if run.parent_start == run.parent_stop:
            return own
        return torch.cat([beginning[run.parent_start][:, :, : run.parent_stop - run.parent_start], own], dim=2)

    return [seen(run, part) for run, part in zip(runs, parts, strict=True)]


def _attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule, sinks: Tensor | None) -> Tensor:
    """The last L of K positions attend to all of them: [1, heads, L, D]."""
    length, total = query.shape[2], key.shape[2]
    if rule.window is not None and rule.window >= total:
        rule = replace(rule, window=None)  # the document is shorter than the window
    if rule.chunk is not None and rule.chunk >= total:
        rule = replace(rule, chunk=None)
    if rule.window is None and rule.chunk is None and rule.softcap is None:
        if sinks is not None:
            mask = causal_lower_right(length, total + 1)
            return F.scaled_dot_product_attention(
                *_with_sink(query, key, value, rule, sinks), attn_mask=mask, scale=1.0
            )
        if length == total:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=rule.scaling)
        mask = causal_lower_right(length, total)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=rule.scaling)
    return torch.cat(list(_blocks(query, key, value, rule, sinks)), dim=2)


def _with_sink(query: Tensor, key: Tensor, value: Tensor, rule: Rule, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same attention with scale 1 and one position more, first, that every query scores with its head's sink.

    Its value is 0. Queries get a 1 behind their numbers, keys a 0, and the sink's key nothing but its score.
    """
    key = F.pad(key, (0, 1, 1, 0))
    score = F.pad(sinks.to(key.dtype)[None, :, None, None], (key.shape[3] - 1, 0, 0, key.shape[2] - 1))
    return F.pad(query * rule.scaling, (0, 1), value=1.0), key + score, F.pad(value, (0, 0, 1, 0))


def _blocks(query: Tensor, key: Tensor, value: Tensor, rule: Rule, sinks: Tensor | None) -> Iterator[Tensor]:
    """Windows, chunks and soft caps, some query rows at a time, each with only the keys that its rows may see."""
    length, total = query.shape[2], key.shape[2]
    recompute = torch.is_grad_enabled() and length > _QUERY_CHUNK  # else all blocks' scores would be kept: L x K
    for first in range(0, length, _QUERY_CHUNK):
        last = min(first + _QUERY_CHUNK, length)
        q0, q1 = total - length + first, total - length + last  # positions in the document
        k0 = 0 if rule.window is None else max(0, q0 - rule.window + 1)
        k0 = k0 if rule.chunk is None else max(k0, q0 - q0 % rule.chunk)
        rows = torch.arange(q0, q1, device=query.device)[:, None]
        columns = torch.arange(k0, q1, device=query.device)
        seen = columns <= rows
        if rule.window is not None:
            seen &= columns > rows - rule.window
        if rule.chunk is not None:
            seen &= columns // rule.chunk == rows // rule.chunk
        block = query[:, :, first:last], key[:, :, k0:q1], value[:, :, k0:q1]
        if sinks is not None:
            mask = F.pad(seen, (1, 0), value=True)
            yield F.scaled_dot_product_attention(*_with_sink(*block, rule, sinks), attn_mask=mask, scale=1.0)
        elif rule.softcap is None:
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
