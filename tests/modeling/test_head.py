from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyprefopt.modeling.head import HeadTransform, token_logps

TRANSFORMS = [HeadTransform(), HeadTransform(scale=0.3), HeadTransform(cap=2.0), HeadTransform(scale=1.7, cap=3.0)]


class NotPlain(nn.Linear):
    """A head that the engine must call as a module."""


def plain(head: nn.Linear, hidden: Tensor, targets: Tensor, transform: HeadTransform) -> Tensor:
    logits = (hidden @ head.weight.T + (0 if head.bias is None else head.bias)) * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]


def inputs(rows: int, size: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, torch.randint(0, vocabulary, (rows,), generator=generator)


def make_head(
    kind: type[nn.Linear], size: int, vocabulary: int, bias: bool, dtype: torch.dtype = torch.float64
) -> nn.Linear:
    head = kind(size, vocabulary, bias=bias, dtype=torch.float64)
    generator = torch.Generator().manual_seed(vocabulary)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return head.to(dtype)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, NotPlain])
def test_gradcheck(kind: type[nn.Linear], bias: bool, transform: HeadTransform) -> None:
    head = make_head(kind, 3, 600, bias)  # three blocks, the last one short
    hidden, targets = inputs(5, 3, 600)
    parameters = tuple(head.parameters())
    torch.autograd.gradcheck(
        lambda h, *_: token_logps(head, h, targets, transform), (hidden, *parameters), fast_mode=True
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40), vocabulary=st.sampled_from([1, 2, 255, 256, 257, 2100]), bias=st.booleans(),
    transform=st.sampled_from(TRANSFORMS), kind=st.sampled_from([nn.Linear, NotPlain]),
)  # fmt: skip
def test_equals_log_softmax(
    rows: int, vocabulary: int, bias: bool, transform: HeadTransform, kind: type[nn.Linear]
) -> None:
    head = make_head(kind, 4, vocabulary, bias)
    hidden, targets = inputs(rows, 4, vocabulary)
    leaves = (hidden, *head.parameters())
    logps, expected = token_logps(head, hidden, targets, transform), plain(head, hidden, targets, transform)
    torch.testing.assert_close(logps, expected, rtol=1e-11, atol=1e-11)
    direction = torch.randn(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((logps * direction).sum(), leaves)
    theirs = torch.autograd.grad((expected * direction).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_large_logits_do_not_overflow() -> None:
    head = make_head(nn.Linear, 4, 600, bias=False, dtype=torch.float32)
    hidden, targets = inputs(6, 4, 600, torch.float32)
    logps = token_logps(head, hidden * 1e4, targets, HeadTransform())
    expected = plain(head, hidden * 1e4, targets, HeadTransform())
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-2)
    assert logps.isfinite().all()


def test_bfloat16_gives_float32_log_probs_and_bfloat16_gradients() -> None:
    exact, head = (make_head(nn.Linear, 32, 2100, False, dtype) for dtype in (torch.float64, torch.bfloat16))
    hidden, targets = inputs(2000, 32, 2100, torch.bfloat16)
    with torch.no_grad():
        exact.weight.copy_(head.weight)
    logps = token_logps(head, hidden, targets, HeadTransform())
    expected = plain(exact, hidden.double(), targets, HeadTransform())
    assert logps.dtype == torch.float32
    assert (logps - expected).abs().max() < 0.1  # a logit of 20 has steps of 0.125 in bfloat16
    logps.sum().backward()
    expected.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.bfloat16
    error = (head.weight.grad.double() - exact.weight.grad).norm() / exact.weight.grad.norm()
    assert error < 2**-6  # adding 2000 rows up in bfloat16 would lose far more


@pytest.mark.parametrize(("frozen", "left"), [("weight", "hidden"), ("hidden", "weight")])
def test_only_the_gradients_that_are_asked_for(frozen: str, left: str) -> None:
    head = make_head(nn.Linear, 4, 300, bias=False)
    hidden, targets = inputs(6, 4, 300)
    leaves = {"hidden": hidden, "weight": head.weight}
    leaves[frozen].requires_grad_(False)
    token_logps(head, hidden, targets, HeadTransform()).sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[left].grad is not None


def test_a_tied_weight_gets_both_gradients() -> None:
    head = make_head(nn.Linear, 4, 300, bias=False)
    _, targets = inputs(6, 4, 300)
    ids = torch.arange(6)
    ours = torch.autograd.grad(token_logps(head, head.weight[ids], targets, HeadTransform()).sum(), head.weight)[0]
    theirs = torch.autograd.grad(plain(head, head.weight[ids], targets, HeadTransform()).sum(), head.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
