from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from pyprefopt.modeling.attention import flex
from pyprefopt.modeling.attention.layout import PackedLayout, Rule
from tests.modeling.attention.test_packed import dense_attention, layouts, states

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def dense(layout: tuple[list[int], list[int]], window: int | None) -> Tensor:
    """Which key each query sees, [N, N], from the contract."""
    offsets, parents = layout
    size = offsets[-1]
    segment = torch.tensor([s for s in range(len(parents)) for _ in range(offsets[s], offsets[s + 1])])
    parent = torch.tensor(parents)[segment]
    before = torch.tensor([0 if p < 0 else offsets[p + 1] - offsets[p] for p in parents])[segment]
    position = torch.arange(size) - torch.tensor(offsets)[segment] + before
    related = (segment[:, None] == segment) | (parent[:, None] == segment)
    seen = related & (torch.arange(size)[:, None] >= torch.arange(size))
    return seen if window is None else seen & (position[:, None] - position < window)


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), window=st.none() | st.integers(1, 14), block=st.sampled_from([1, 3, 8]))
def test_the_mask_and_its_blocks(layout: tuple[list[int], list[int]], window: int | None, block: int) -> None:
    """What a query sees, token by token; the blocks are those that PyTorch finds by looking at every token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK", block)
        offsets, parents = layout
        size = offsets[-1]
        mask = flex.block_mask(PackedLayout.build(offsets, parents, size), window, CPU)
    index = torch.arange(size)
    assert mask.mask_mod is not None
    assert torch.equal(mask.mask_mod(index, index, index[:, None], index[None]), dense(layout, window))
    slow = create_block_mask(mask.mask_mod, None, None, size, size, device="cpu", BLOCK_SIZE=block)
    assert mask.shape == slow.shape
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, indices = (getattr(mask, f"{name}_{what}") for what in ("num_blocks", "indices"))
        slow_counts, slow_indices = (getattr(slow, f"{name}_{what}") for what in ("num_blocks", "indices"))
        assert torch.equal(counts, slow_counts)
        for row, slow_row, count in zip(indices[0, 0], slow_indices[0, 0], counts[0, 0], strict=True):
            assert row[:count].tolist() == slow_row[:count].tolist()


BATCHES = {
    "shared": ([0, 150, 240, 310], [-1, 0, 0]),
    "separate": ([0, 150, 400], [-1, -1]),
    "three responses": ([0, 140, 140, 300, 430], [-1, 0, 0, 0]),
    "one block": ([0, 60, 100], [-1, 0]),
}


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 90])
@pytest.mark.parametrize("name", BATCHES)
def test_values_without_gradient_equal_a_dense_mask(name: str, window: int | None, cap: float | None) -> None:
    layout = BATCHES[name]
    size = layout[0][-1]
    for groups in (1, 2, 3):
        query, key, value = (x.detach() for x in states(size, 6, groups, torch.float64))
        output = flex.attend(query, key, value, PackedLayout.build(*layout, size), Rule(0.5, window, cap))
        expected = dense_attention(query, key, value, layout, window, cap)
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


def test_one_mask_serves_all_layers_of_a_window() -> None:
    layout = PackedLayout.build(*BATCHES["shared"], 310)
    query, key, value = (x.detach() for x in states(310, 2, 1, torch.float32))
    for window in (None, 90, None, 90):
        flex.attend(query, key, value, layout, Rule(0.5, window))
    assert len(layout._made) == 2


def test_two_graphs_serve_every_length_window_and_cap() -> None:
    """The first length, then any: a training run must not compile again and again."""
    for caps in ((None,), (2.0, 3.0)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(flex_attention, fullgraph=True, backend=counter)
        for size in (310, 460, 700, 1500, 300):
            for window in (None, 100):
                for cap in caps:
                    query, key, value = (x.detach() for x in states(size, 4, 2, torch.float32))
                    mask = flex.block_mask(PackedLayout.build([0, size - 50, size], [-1, 0], size), window, CPU)
                    score = None if cap is None else flex._soft_cap(cap, 4, CPU)
                    compiled(query, key, value, score, mask, 0.5, True)
        assert counter.frame_count == 2
    torch._dynamo.reset()
