"""Packed attention by PyTorch's flex attention: one kernel for shared prompts, sliding windows and soft caps.

Which blocks of the score matrix hold anything is read off the layout's integers, once a batch and window; inside a
block three numbers a query decide. Everything that varies between batches and layers is a tensor, never a constant of
the kernel, so that one compiled kernel serves them all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pyprefopt.modeling.attention import loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pyprefopt.modeling.attention.layout import PackedLayout, Rule

BLOCK = 128  # queries and keys of a block


def attend(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule) -> Tensor:
    """Query [1, heads, N, D], key and value [1, key heads, N, D] -> [1, N, heads, D].

    A pack of a single block goes through the loop: for so few queries the compiler would make another kernel.
    """
    if layout.size <= BLOCK:
        return loop.attend(query, key, value, layout, rule)
    mask = layout.once(("flex", query.device, rule.window), lambda: block_mask(layout, rule.window, query.device))
    groups = query.shape[1] // key.shape[1]
    if groups & (groups - 1):  # the kernel's groups are powers of two
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        groups = 1
    score = None if rule.softcap is None else _soft_cap(rule.softcap, query.shape[1], query.device)
    output = _kernel(query.device)(query, key, value, score, mask, rule.scaling, groups > 1)
    return output.transpose(1, 2).contiguous()  # type: ignore[no-any-return]


def _kernel(device: torch.device) -> Callable[..., Any]:
    return _compiled() if device.type == "cuda" else cast("Callable[..., Any]", flex_attention)


@lru_cache
def _compiled() -> Callable[..., Any]:
    """A graph for the first length, then one for every length; an error where it would run unfused, with all scores.

    `dynamic=True` would make the scale a variable of the kernel; left out, what varies is found at the second length.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # a process may see 64 models
    return torch.compile(flex_attention, fullgraph=True)


def _soft_cap(cap: float, heads: int, device: torch.device) -> Callable[..., Tensor]:
    caps = torch.full((heads,), cap, device=device)

    def score(score: Tensor, _batch: Tensor, head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return caps[head] * torch.tanh(score / caps[head])

    return score


def block_mask(layout: PackedLayout, window: int | None, device: torch.device) -> BlockMask:
    """Which keys a query sees, as flex attention takes it."""
    seen = _seen(layout, window)
    low, first, last = (x.to(device, torch.int32) for x in seen)

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((k >= low[q]) & (k <= q)) | ((k >= first[q]) & (k < last[q]))

    (count, listed), (full_count, full_listed) = (_listed(blocks.to(device)) for blocks in _blocks(*seen))
    return BlockMask.from_kv_blocks(
        count, listed, full_count, full_listed, BLOCK, mask_mod=sees, seq_lengths=(layout.size, layout.size)
    )


def _seen(layout: PackedLayout, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query q sees the keys low[q] .. q of its own run, and first[q] .. last[q] - 1 of its parent: 3 x [N] i64."""
    low = torch.empty(layout.size, dtype=torch.int64)
    first, last = torch.zeros_like(low), torch.zeros_like(low)
    for run in layout.runs:
        own = torch.arange(run.start, run.stop)
        reach = run.stop if window is None else window  # at least as far as anything stands
        low[own] = (own - reach + 1).clamp(min=run.start)
        if run.parent_start < run.parent_stop:
            before = own - run.start - (run.keys if window is None else window) + 1  # of the parent's end
            first[own] = (run.parent_stop + before).clamp(min=run.parent_start)
            last[own] = run.parent_stop
    return low, torch.minimum(first, last), last


def _blocks(low: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [query blocks, key blocks] in which something is seen, but not everything, and in which everything is."""
    query = torch.arange(len(low))
    count = -(-len(low) // BLOCK)
    some, every = torch.zeros(2, count, count + 1, dtype=torch.int64)
    for begin, end in ((low, query + 1), (first, last)):  # both ends of each range of blocks, summed up along a row
        _mark(some, query, begin // BLOCK, -(-end // BLOCK), begin < end)
        _mark(every, query, -(-begin // BLOCK), end // BLOCK, -(-begin // BLOCK) < end // BLOCK)
    full = every.cumsum(1)[:, :-1] == BLOCK  # never where the last block has fewer queries: the kernel must see that
    return (some.cumsum(1)[:, :-1] > 0) & ~full, full


def _mark(marks: Tensor, query: Tensor, begin: Tensor, end: Tensor, where: Tensor) -> None:
    """Count the range begin .. end - 1 of key blocks in the row of each query's block."""
    one = torch.ones(int(where.sum()), dtype=torch.int64)
    marks.index_put_((query[where] // BLOCK, begin[where]), one, accumulate=True)
    marks.index_put_((query[where] // BLOCK, end[where]), -one, accumulate=True)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has [1, 1, rows], and which, the chosen first [1, 1, rows, columns]."""
    order = torch.argsort(blocks.to(torch.int8), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
