"""Slow twins of the fused kernels for documents of varying length: their arguments and meaning, any device and dtype.

The signatures are those of PyTorch 2.10, 2.11 and 2.12 (`torch.nn.attention.varlen.varlen_attn`) and of flash-attn 2.6.
A document's queries stand at the end of its keys; a window (left, right) lets query i see keys i - left to i + right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def by_documents(
    query: Tensor, key: Tensor, value: Tensor, offsets: tuple[Tensor, Tensor], longest: tuple[int, int],
    scale: float, window: tuple[int, int], softcap: float = 0.0, grouped: bool = True,
) -> Tensor:  # fmt: skip
    """One document after another, key by key."""
    groups = query.shape[1] // key.shape[1]
    assert grouped or groups == 1, "query and key/value must have the same number of heads"
    assert all(x.dtype == torch.int32 for x in offsets)
    assert all(int(x.diff().max()) == n for x, n in zip(offsets, longest, strict=True))
    assert [int(x[-1]) for x in offsets] == [len(query), len(key)]
    parts = []
    for q0, q1, k0, k1 in zip(*(x for o in offsets for x in (o[:-1].tolist(), o[1:].tolist())), strict=True):
        q, k, v = query[q0:q1], key[k0:k1].repeat_interleave(groups, 1), value[k0:k1].repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        distance = torch.arange(k1 - k0) - (torch.arange(q1 - q0) + (k1 - k0) - (q1 - q0))[:, None]
        left, right = (n if n >= 0 else len(key) + 1 for n in window)
        scores = scores.masked_fill((distance < -left) | (distance > right), float("-inf"))
        parts.append(torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), v))
    return torch.cat(parts)


def torch_2_10(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None, scale: float | None = None,
) -> Tensor:  # fmt: skip
    window = (-1, 0) if is_causal else (-1, -1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return by_documents(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), scale, window, grouped=False)


def torch_2_11(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return by_documents(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), scale, window_size, grouped=False)


def torch_2_12(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Tensor | None = None,
) -> Tensor:  # fmt: skip
    assert cu_seq_k is not None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    offsets = cu_seq_q, cu_seq_k
    return by_documents(query, key, value, offsets, (max_q, max_k), scale, window_size, grouped=enable_gqa)


def flash_2_6(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
) -> Tensor:  # fmt: skip
    window = (window_size[0], 0) if causal else window_size
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    offsets = cu_seqlens_q, cu_seqlens_k
    return by_documents(q, k, v, offsets, (max_seqlen_q, max_seqlen_k), scale, window, softcap)


KERNELS = {"torch 2.10": torch_2_10, "torch 2.11": torch_2_11, "torch 2.12": torch_2_12, "flash-attn 2.6": flash_2_6}
