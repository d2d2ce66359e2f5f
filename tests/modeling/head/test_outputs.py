from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.head.outputs import Readout, token_logps, token_outputs
from pyprefopt.modeling.head.transform import HeadTransform

TRANSFORMS = [HeadTransform(), HeadTransform(scale=0.3), HeadTransform(cap=2.0), HeadTransform(scale=1.7, cap=3.0)]


def token_logps_and_kl(policy: Readout, reference: Readout, targets: Tensor) -> tuple[Tensor, Tensor]:
    outputs = token_outputs(policy, targets, reference=reference)
    assert outputs.entropy is None
    return outputs.logps, outputs.kl


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
        lambda h, *_: token_logps(Readout(head, h, transform), targets), (hidden, *parameters), fast_mode=True
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
    logps, expected = token_logps(Readout(head, hidden, transform), targets), plain(head, hidden, targets, transform)
    torch.testing.assert_close(logps, expected, rtol=1e-11, atol=1e-11)
    direction = torch.randn(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((logps * direction).sum(), leaves)
    theirs = torch.autograd.grad((expected * direction).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_large_logits_do_not_overflow() -> None:
    head = make_head(nn.Linear, 4, 600, bias=False, dtype=torch.float32)
    hidden, targets = inputs(6, 4, 600, torch.float32)
    logps = token_logps(Readout(head, hidden * 1e4, HeadTransform()), targets)
    expected = plain(head, hidden * 1e4, targets, HeadTransform())
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-2)
    assert logps.isfinite().all()


def test_bfloat16_gives_float32_log_probs_and_bfloat16_gradients() -> None:
    exact, head = (make_head(nn.Linear, 32, 2100, False, dtype) for dtype in (torch.float64, torch.bfloat16))
    hidden, targets = inputs(2000, 32, 2100, torch.bfloat16)
    with torch.no_grad():
        exact.weight.copy_(head.weight)
    logps = token_logps(Readout(head, hidden, HeadTransform()), targets)
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
    token_logps(Readout(head, hidden, HeadTransform()), targets).sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[left].grad is not None


def test_a_tied_weight_gets_both_gradients() -> None:
    head = make_head(nn.Linear, 4, 300, bias=False)
    _, targets = inputs(6, 4, 300)
    ids = torch.arange(6)
    ours = torch.autograd.grad(
        token_logps(Readout(head, head.weight[ids], HeadTransform()), targets).sum(), head.weight
    )[0]
    theirs = torch.autograd.grad(plain(head, head.weight[ids], targets, HeadTransform()).sum(), head.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def plain_kl(policy: Readout, reference: Readout) -> Tensor:
    """Sum over the vocabulary of p_ref (log p_ref - log p), all logits at once."""
    own, ref = (torch.log_softmax(r.logits(r.hidden), dim=-1) for r in (policy, reference))
    return (ref.exp() * (ref - own)).sum(-1)


def readouts(
    rows: int, vocabulary: int, kind: type[nn.Linear] = nn.Linear, *, bias: bool = False,
    transform: HeadTransform = TRANSFORMS[0], dtype: torch.dtype = torch.float64,
) -> tuple[Readout, Readout, Tensor]:  # fmt: skip
    """A policy, a reference of another width, scale and cap, and targets."""
    hidden, targets = inputs(rows, 4, vocabulary, dtype)
    ref_hidden, _ = inputs(rows, 6, vocabulary, dtype)
    policy = Readout(make_head(kind, 4, vocabulary, bias, dtype), hidden, transform)
    reference = Readout(make_head(nn.Linear, 6, vocabulary, not bias, dtype), ref_hidden.detach(), HeadTransform(0.7))
    return policy, reference, targets


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40), vocabulary=st.sampled_from([1, 2, 255, 256, 257, 2100]), bias=st.booleans(),
    transform=st.sampled_from(TRANSFORMS), kind=st.sampled_from([nn.Linear, NotPlain]),
)  # fmt: skip
def test_kl_equals_the_sum_over_the_vocabulary(
    rows: int, vocabulary: int, bias: bool, transform: HeadTransform, kind: type[nn.Linear]
) -> None:
    policy, reference, targets = readouts(rows, vocabulary, kind, bias=bias, transform=transform)
    leaves = (policy.hidden, *policy.head.parameters())
    logps, kl = token_logps_and_kl(policy, reference, targets)
    expected = plain(policy.head, policy.hidden, targets, transform), plain_kl(policy, reference)
    torch.testing.assert_close((logps, kl), expected, rtol=1e-10, atol=1e-10)
    assert kl.min() > -1e-12
    a, b = torch.randn(2, rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((a * logps + b * kl).sum(), leaves)
    theirs = torch.autograd.grad((a * expected[0] + b * expected[1]).sum(), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_kl_by_hand() -> None:
    head = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    hidden = torch.tensor([[3.0], [1.0]], dtype=torch.float64).log().requires_grad_()  # p = (3/4, 1/4), (1/2, 1/2)
    reference = Readout(head, hidden.detach().flip(0), HeadTransform())
    _, kl = token_logps_and_kl(Readout(head, hidden, HeadTransform()), reference, torch.tensor([0, 1]))
    expected = [0.5 * math.log(4 / 3), 0.75 * math.log(3) - math.log(2)]  # sum of q log(q / p)
    torch.testing.assert_close(kl, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(kl.sum(), hidden)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.25, -0.25], dtype=torch.float64))  # p - q


@pytest.mark.parametrize("kind", [nn.Linear, NotPlain])
def test_kl_gradcheck(kind: type[nn.Linear]) -> None:
    policy, reference, targets = readouts(5, 600, kind, bias=True, transform=HeadTransform(1.7, 3.0))
    torch.autograd.gradcheck(
        lambda h, *_: token_logps_and_kl(Readout(policy.head, h, policy.transform), reference, targets),
        (policy.hidden, *policy.head.parameters()), fast_mode=True,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_models_have_no_divergence_and_no_gradient(dtype: torch.dtype) -> None:
    policy, _, targets = readouts(30, 2100, dtype=dtype)
    _, kl = token_logps_and_kl(policy, Readout(policy.head, policy.hidden.detach(), policy.transform), targets)
    assert torch.equal(kl, torch.zeros_like(kl))
    kl.sum().backward()
    assert policy.head.weight.grad is not None
    assert not policy.head.weight.grad.any()


def test_kl_in_float32_is_near_float64() -> None:
    policy, reference, targets = readouts(200, 2100, dtype=torch.float32)
    exact = [Readout(make_head(nn.Linear, r.head.in_features, 2100, r.head.bias is not None), r.hidden.double(),
                     r.transform) for r in (policy, reference)]  # fmt: skip
    logps, kl = token_logps_and_kl(policy, reference, targets)
    for head, other in zip((policy.head, reference.head), exact, strict=True):
        other.head.load_state_dict({name: t.double() for name, t in head.state_dict().items()})
    expected = token_logps_and_kl(*exact, targets)
    torch.testing.assert_close((logps.double(), kl.double()), expected, rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow_the_divergence() -> None:
    policy, reference, targets = readouts(6, 600, dtype=torch.float32)
    loud = Readout(policy.head, policy.hidden * 1e4, policy.transform)
    logps, kl = token_logps_and_kl(loud, reference, targets)
    torch.testing.assert_close(kl, plain_kl(loud, reference), rtol=1e-5, atol=1e-2)
    (logps.sum() + kl.sum()).backward()
    assert policy.head.weight.grad is not None
    assert policy.head.weight.grad.isfinite().all()


def test_another_vocabulary_is_refused() -> None:
    policy, _, targets = readouts(5, 300)
    _, reference, _ = readouts(5, 301)
    with pytest.raises(ConfigError, match="one vocabulary, but have 300 and 301"):
        token_logps_and_kl(policy, reference, targets)


# --- entropy ------------------------------------------------------------------------------------------------------


def plain_entropy(readout: Readout) -> Tensor:
    logps = torch.log_softmax(readout.logits(readout.hidden), dim=-1)
    return -(logps.exp() * logps).sum(-1)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40), vocabulary=st.sampled_from([1, 2, 255, 256, 257, 2100]), bias=st.booleans(),
    transform=st.sampled_from(TRANSFORMS), kind=st.sampled_from([nn.Linear, NotPlain]), kl=st.booleans(),
)  # fmt: skip
def test_entropy_equals_the_sum_over_the_vocabulary(
    rows: int, vocabulary: int, bias: bool, transform: HeadTransform, kind: type[nn.Linear], kl: bool
) -> None:
    policy, reference, targets = readouts(rows, vocabulary, kind, bias=bias, transform=transform)
    leaves = (policy.hidden, *policy.head.parameters())
    ours = token_outputs(policy, targets, reference=reference if kl else None, entropy=True)
    theirs = [plain(policy.head, policy.hidden, targets, transform), plain_entropy(policy), plain_kl(policy, reference)]
    found, wanted = [ours.logps, ours.entropy, ours.kl][: 2 + kl], theirs[: 2 + kl]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weights = torch.randn(3, rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for chosen in ([0], [1], [0, 1], [0, 1, 2][: 2 + kl], [1, 2][: 1 + kl]):  # gradients of some, others unused
        sums = [sum((weights[i] * values[i]).sum() for i in chosen) for values in (found, wanted)]
        gradients = [torch.autograd.grad(total, leaves, retain_graph=True) for total in sums]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_entropy_by_hand() -> None:
    head = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    hidden = torch.tensor([[3.0], [1.0]], dtype=torch.float64).log()  # p = (3/4, 1/4), (1/2, 1/2)
    outputs = token_outputs(Readout(head, hidden, HeadTransform()), torch.tensor([0, 1]), entropy=True)
    expected = torch.tensor([math.log(4) - 0.75 * math.log(3), math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(outputs.entropy, expected, rtol=1e-14, atol=0)


def test_entropy_gradcheck() -> None:
    policy, reference, targets = readouts(5, 600, bias=True, transform=HeadTransform(1.7, 3.0))
    torch.autograd.gradcheck(
        lambda h, *_: token_outputs(policy._replace(hidden=h), targets, reference=reference, entropy=True)[:2],
        (policy.hidden, *policy.head.parameters()), fast_mode=True,
    )  # fmt: skip


# --- memory -------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements of a tensor that is not as large as the head's weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.found = weight, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.found = max([self.found, *(t.numel() for t in tensors if t.shape != self.weight.shape)])
        return result


@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_grows_with_the_vocabulary(entropy: bool, kl: bool, dtype: torch.dtype) -> None:
    largest = []
    for vocabulary in (40_000, 120_000):
        policy, reference, targets = readouts(200, vocabulary, dtype=dtype)
        with Largest(policy.head.weight) as seen:
            outputs = token_outputs(policy, targets, reference=reference if kl else None, entropy=entropy)
            sum(values.sum() for values in outputs if values is not None).backward()
        largest.append(seen.found)
        assert policy.head.weight.grad is not None
    assert largest[0] == largest[1] == 200 * 1024
