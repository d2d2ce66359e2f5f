from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.modeling.attention import varlen
from pyprefopt.modeling.attention.layout import PackedLayout, Rule
from tests.modeling.attention.kernels import KERNELS
from tests.modeling.attention.test_packed import DEMANDS, dense_attention, states


@settings(max_examples=60, deadline=None)
@given(
    **DEMANDS,
    kernel=st.sampled_from([varlen.Kernel.of(twin) for twin in KERNELS.values()]),
)
def test_equals_a_dense_mask(
    layout: tuple[list[int], list[int]],
    window: int | None,
    cap: float | None,
    groups: int,
    kernel: varlen.Kernel,
) -> None:
    """Both layouts, windows, caps and grouped heads, in every version's arguments: values and gradients in float64."""
    window = None if kernel.missing(window=True, softcap=False) else window
    cap = None if kernel.missing(window=False, softcap=True) else cap
    offsets, parents = layout
    inputs = states(offsets[-1], 4, groups, torch.float64)
    packed = PackedLayout.build(offsets, parents, offsets[-1])
    output = varlen.attend(kernel, *inputs, packed, Rule(0.5, window, cap))
    expected = dense_attention(*inputs, layout, window, cap)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = torch.autograd.grad((output * direction).sum(), inputs)
    theirs = torch.autograd.grad((expected * direction).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_keys_of_a_prompt_stand_before_each_response_that_does_not_follow_it() -> None:
    documents = PackedLayout.build([0, 3, 5, 9, 10], [-1, 0, 0, -1], 10).documents(torch.device("cpu"))
    assert documents.query_offsets.tolist() == [0, 5, 9, 10]
    assert documents.key_offsets.tolist() == [0, 5, 12, 13]
    assert documents.gather is not None
    assert documents.gather.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9]
    assert (documents.longest_query, documents.longest_key) == (5, 7)


def test_without_parents_nothing_is_gathered_and_the_offsets_are_one_tensor() -> None:
    documents = PackedLayout.build([0, 3, 5, 9], [-1, 0, -1], 9).documents(torch.device("cpu"))
    assert documents.gather is None
    assert documents.key_offsets is documents.query_offsets  # PyTorch's cuDNN kernel asks for that
    assert documents.query_offsets.tolist() == [0, 5, 9]


def test_layers_share_what_is_made_of_a_layout() -> None:
    layout = PackedLayout.build([0, 4], [-1], 4)
    device = torch.device("cpu")
    assert layout.documents(device) is layout.documents(device)


def test_a_window_that_reaches_over_every_document_is_left_out() -> None:
    seen = []

    def kernel(query, key, value, q, k, m, n, *, scale=None, window_size=(-1, -1)):
        seen.append(window_size)
        return query

    inputs = states(9, 2, 1, torch.float64)
    for window in (4, 5, None):
        layout = PackedLayout.build([0, 5, 9], [-1, -1], 9)
        varlen.attend(varlen.Kernel.of(kernel), *inputs, layout, Rule(0.5, window))
    assert seen == [(3, 0), (-1, 0), (-1, 0)]


@pytest.mark.parametrize(
    ("kernel", "window", "softcap", "lack"),
    [
        ("torch 2.10", True, False, "this version has no sliding windows"),
        ("torch 2.11", True, False, None),
        ("torch 2.12", False, True, "it has no soft caps"),
        ("flash-attn 2.6", True, True, None),
    ],
)
def test_what_a_version_lacks(kernel: str, window: bool, softcap: bool, lack: str | None) -> None:
    assert varlen.Kernel.of(KERNELS[kernel]).missing(window, softcap) == lack


def test_a_kernel_without_a_scale_is_refused() -> None:
    kernel = varlen.Kernel.of(lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: query)
    assert kernel.missing(window=False, softcap=False) == "this version takes no scale"


def test_the_kernel_of_the_pytorch_here_is_found_with_arguments_that_are_known() -> None:
    kernel = varlen.torch_kernel()
    assert kernel is not None
    assert kernel.missing(window=False, softcap=False) is None
    assert kernel.names >= {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"}


def test_a_package_that_is_missing_or_broken_gives_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> SimpleNamespace:
        raise ImportError("undefined symbol")

    for importer in (broken, lambda name: SimpleNamespace()):
        monkeypatch.setattr(varlen, "import_module", importer)
        assert varlen._find("flash_attn", "flash_attn_varlen_func") is None
