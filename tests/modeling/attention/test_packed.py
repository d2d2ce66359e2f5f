from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling.attention import loop
from pyprefopt.modeling.attention.layout import PackedLayout, Run
from pyprefopt.modeling.attention.packed import packed_attention

MODULE = nn.Identity()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Offsets and parents: prompts (never empty where they are parents) and responses, empty ones too."""
    offsets, parents = [0], []
    for _ in range(draw(st.integers(1, 4))):
        root = len(parents)
        children = draw(st.lists(st.integers(0, 12), max_size=3))
        lengths = [draw(st.integers(1, 12)), *children]
        for i, length in enumerate(lengths):
            parents.append(root if i else -1)
            offsets.append(offsets[-1] + length)
    return offsets, parents


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: tuple[list[int], list[int]],
    window: int | None,
    cap: float | None,
    together: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One dense mask, written token by token from the contract, chunks of `together` positions; all in float64."""
    offsets, parents = layout
    segment = [s for s in range(len(parents)) for _ in range(offsets[s], offsets[s + 1])]

    def position(i: int) -> int:
        parent = parents[segment[i]]
        before = offsets[parent + 1] - offsets[parent] if parent >= 0 else 0
        return before + i - offsets[segment[i]]

    def sees(i: int, j: int) -> bool:
        related = segment[j] in (segment[i], parents[segment[i]])
        near = window is None or position(i) - position(j) < window
        return related and j <= i and near and (together is None or position(i) // together == position(j) // together)

    n = len(segment)
    mask = torch.tensor([[sees(i, j) for j in range(n)] for i in range(n)])
    groups = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double(), value.double()
    scores = torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(groups, 1)) * query.shape[-1] ** -0.5
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    weights = torch.exp(scores.masked_fill(~mask, float("-inf")))
    total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks.double().exp()[:, None, None])
    return torch.einsum("bhij,bhjd->bihd", weights / total, v.repeat_interleave(groups, 1))


def states(size: int, heads: int, groups: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [
        (2 * torch.randn(1, count, size, 4, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for count in (heads, heads // groups, heads // groups)
    ]


DEMANDS = {  # what the dense mask is asked in the tests of each way
    "layout": layouts(),
    "window": st.none() | st.integers(1, 14),
    "cap": st.sampled_from([None, 1.5]),
    "groups": st.sampled_from([1, 2, 4]),
}


@settings(max_examples=60, deadline=None)
@given(
    **DEMANDS,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    chunk=st.sampled_from([3, 256]),
)
def test_equals_a_dense_mask(
    layout: tuple[list[int], list[int]],
    window: int | None,
    cap: float | None,
    groups: int,
    dtype: torch.dtype,
    chunk: int,
) -> None:
    offsets, parents = layout
    inputs = states(offsets[-1], 4, groups, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_QUERY_CHUNK", chunk)
        output, weights = packed_attention(
            MODULE, *inputs, None, packed_layout=PackedLayout.build(offsets, parents, offsets[-1]),
            sliding_window=window, softcap=cap,
        )  # fmt: skip
        expected = dense_attention(*inputs, layout, window, cap)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        assert weights is None
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
        direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = torch.autograd.grad((output.double() * direction).sum(), inputs)
    theirs = torch.autograd.grad((expected * direction).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=10 * tolerance, atol=10 * tolerance)


def test_the_window_is_the_exact_length() -> None:
    for total in (7, 8, 9, 10):
        layout = ([0, total], [-1])
        inputs = states(total, 2, 1, torch.float64)
        output, _ = packed_attention(MODULE, *inputs, None, sliding_window=8)
        torch.testing.assert_close(output, dense_attention(*inputs, layout, 8, None), rtol=1e-12, atol=1e-12)


def test_a_response_right_behind_its_prompt_runs_with_it() -> None:
    layout = PackedLayout.build([0, 3, 5, 9], [-1, 0, 0], 9)
    assert layout.runs == (Run(0, 5), Run(5, 9, 0, 3))
    behind_an_empty_one = PackedLayout.build([0, 3, 3, 9], [-1, 0, 0], 9)
    assert behind_an_empty_one.runs == (Run(0, 9),)


class Chunked(nn.Identity):
    """A layer whose config names chunks."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.config, self.layer_idx = (
            SimpleNamespace(layer_types=["chunked_attention"], attention_chunk_size=together),
            0,
        )


@settings(max_examples=60, deadline=None)
@given(
    layout=layouts(),
    window=st.none() | st.integers(1, 14),
    together=st.none() | st.integers(1, 14),
    has_sinks=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    rows=st.sampled_from([3, 256]),
)
def test_sinks_and_chunks_equal_a_dense_mask(
    layout: tuple[list[int], list[int]],
    window: int | None,
    together: int | None,
    has_sinks: bool,
    groups: int,
    rows: int,
) -> None:
    offsets, parents = layout
    inputs = states(offsets[-1], 4, groups, torch.float64)
    sinks = torch.tensor([-1.0, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True) if has_sinks else None
    inputs += [sinks] if sinks is not None else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_QUERY_CHUNK", rows)
        output, _ = packed_attention(
            MODULE if together is None else Chunked(together), *inputs[:3], None, sliding_window=window, s_aux=sinks,
            packed_layout=PackedLayout.build(offsets, parents, offsets[-1]),
        )  # fmt: skip
        expected = dense_attention(*inputs[:3], layout, window, None, together, sinks)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
        direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = torch.autograd.grad((output * direction).sum(), inputs)
    theirs = torch.autograd.grad((expected * direction).sum(), inputs)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("offsets", "parents", "message"),
    [
        ([0, 3], [-1], r"rise from 0 to the number of input tokens \(4\)"),
        ([0, 3, 2, 4], [-1, 0, 0], "segment_offsets must rise"),
        ([0, 4], [-1, 0], r"one entry a segment \(1\), got 2"),
        ([0, 2, 4], [1, -1], r"segment_parent\[0\] must be -1 or an earlier segment"),
        ([0, 1, 2, 4], [-1, 0, 1], r"segment_parent\[2\] must be -1 or an earlier segment without parent, got 1"),
    ],
)
def test_broken_layouts_are_refused(offsets: list[int], parents: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PackedLayout.build(offsets, parents, 4)


def test_a_layout_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="covers 3 tokens, the model was given 5"):
        packed_attention(
            MODULE, *states(5, 2, 1, torch.float32), None, packed_layout=PackedLayout.build([0, 3], [-1], 3)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s_aux": torch.ones(2), "softcap": 1.0}, "Identity asks for attention sinks with a soft cap"),
        ({"position_bias": torch.ones(2)}, r"asks for position_bias \(a learned position bias\)"),
        ({"something_new": 3}, r"asks for something_new \(which packed attention does not know\)"),
        ({"cu_seq_lens_q": torch.ones(2)}, "another description of the packing"),
        ({"dropout": 0.1}, "attention dropout must be 0, got 0.1"),
        ({"is_causal": False}, "is not causal"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        packed_attention(MODULE, *states(5, 2, 1, torch.float32), None, **options)


def test_masks_caches_and_lost_windows_are_refused() -> None:
    query, key, value = states(5, 2, 1, torch.float32)
    with pytest.raises(ConfigError, match=r"attention_mask \(a mask besides the packed layout\)"):
        packed_attention(MODULE, query, key, value, torch.ones(1, 1, 5, 5))
    with pytest.raises(ConfigError, match="one pack of equal length"):
        packed_attention(MODULE, query[:, :, 1:], key, value, None)
    with pytest.raises(ConfigError, match="one pack of equal length"):
        packed_attention(MODULE, *(x.expand(2, -1, -1, -1) for x in (query, key, value)), None)
    module = nn.Identity()
    module.is_causal = False
    with pytest.raises(ConfigError, match="is not causal"):
        packed_attention(module, query, key, value, None)
    for config in (
        SimpleNamespace(layer_types=["full_attention", "sliding_attention"]),
        SimpleNamespace(layer_types=None, sliding_window=8),
    ):
        module = nn.Identity()
        module.config, module.layer_idx = config, 1
        with pytest.raises(ConfigError, match="sliding window in its config that does not reach"):
            packed_attention(module, query, key, value, None)
        packed_attention(module, query, key, value, None, sliding_window=8)
