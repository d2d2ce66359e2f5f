import math
from dataclasses import replace

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, TDPO1, TDPO2, weighted_sums
from pyprefopt.modeling.head.outputs import Readout, token_logps, token_outputs
from pyprefopt.modeling.head.transform import HeadTransform
from tests.losses.pairs import TOLERANCE, assert_like_reference, batch_of, kl_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response, sigmoid


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(
    ("method", "scale"), [(TDPO1(beta=0.3), 1.0), (TDPO1(beta=0.3, kl_scale=0.2), 0.2), (TDPO2(beta=0.3), 0.5)]
)
def test_like_reference(dtype, select, method, scale):
    assert_like_reference(
        method, lambda chosen, rejected: reference.tdpo(chosen, rejected, 0.3, scale), dtype, select=select
    )


def worked():
    """Equal log-ratios; divergences 2 (chosen) and 5 (rejected)."""
    pair = (Response([-1.0], [-1.0], [True]), Response([-2.0, -1.0], [-2.0, -1.0], [True] * 2))
    batch, logps = batch_of([pair], torch.float64)
    return batch, logps, torch.tensor([2.0, 5.0], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("method", "margin"), [(TDPO1(beta=0.5), -0.5 * 3), (TDPO2(beta=0.5, alpha=0.2), -0.5 * 0.2 * 3)]
)
def test_worked_by_hand(method, margin):
    got = losses(method, *worked()).item()
    assert got == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-12)


def test_gradient_by_the_divergences():
    """TDPO1 pulls on both, TDPO2 on the rejected response's alone."""
    slope = sigmoid(0.5 * 3) * 0.5  # of -log sigmoid(z) at z = -1.5, times beta
    batch, logps, kl = worked()
    (both,) = torch.autograd.grad(losses(TDPO1(beta=0.5), batch, logps, kl).sum(), kl)
    assert both.tolist() == pytest.approx([-slope, slope], rel=1e-12)
    (one,) = torch.autograd.grad(losses(TDPO2(beta=0.5, alpha=1.0), batch, logps, kl).sum(), kl)
    assert one.tolist() == pytest.approx([0.0, slope], rel=1e-12)


def test_tdpo2_reports_the_margin_that_it_compares():
    batch, logps, kl = worked()
    method = TDPO2(beta=0.5, alpha=0.2)
    from tests.losses.pairs import sums_of

    rewards = method.rewards(sums_of(method, batch, logps, kl), batch)
    assert (rewards[0] - rewards[1]).item() == pytest.approx(-0.3, rel=1e-12)


@pytest.mark.parametrize("method", [TDPO1(kl_scale=0.0), TDPO2(alpha=0.0)])
def test_without_divergence_it_is_dpo(method):
    pairs = random_pairs(5, select=True)
    batch, logps = batch_of(pairs, torch.float64)
    assert torch.equal(losses(method, batch, logps, kl_of(pairs, torch.float64)), losses(DPO(), batch, logps))


@pytest.mark.parametrize("method", [TDPO1(), TDPO2()])
def test_where_policy_and_reference_are_equal_it_is_ln_2(method):
    """All divergences are 0 there, and so is the margin."""
    batch, _ = batch_of(random_pairs(5), torch.float64)
    got = losses(method, batch, batch.ref_logps.clone(), torch.zeros(len(batch.response_row), dtype=torch.float64))
    assert torch.equal(got, torch.full_like(got, math.log(2)))


@pytest.mark.parametrize(("method", "name"), [(TDPO1, "kl_scale"), (TDPO2, "alpha")])
def test_settings_are_checked(method, name):
    with pytest.raises(ConfigError, match=rf"loss\.{name} must be >= 0 and finite, got -0\.5"):
        method(**{name: -0.5})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("method", "scale"), [(TDPO1(beta=0.3), 1.0), (TDPO1(beta=0.3, kl_scale=0.4), 0.4), (TDPO2(beta=0.3), 0.5)]
)
def test_value_and_gradient_through_the_vocabulary(dtype, method, scale):
    """From logits to loss, with the divergence as the engine computes it (vocabulary of two blocks)."""
    vocabulary, lengths = 300, [(4, 3), (1, 6), (5, 1)]
    draws = torch.Generator().manual_seed(0)
    count = sum(map(sum, lengths))
    own, other = (2 * torch.randn(count, vocabulary, generator=draws, dtype=torch.float64) for _ in range(2))
    targets = torch.randint(0, vocabulary, (count,), generator=draws)
    pairs = [tuple(Response([0.0] * n, [0.0] * n, [True] * n) for n in pair) for pair in lengths]
    batch, _ = batch_of(pairs, dtype)
    hidden = own.to(dtype).requires_grad_()
    policy, ref = (Readout(head_of(vocabulary, dtype), h, HeadTransform()) for h in (hidden, other.to(dtype)))
    logps, kl, *_ = token_outputs(policy, targets, reference=ref)
    with torch.no_grad():
        ref_logps = token_logps(ref, targets)
    got = losses(
        method, replace(batch, ref_logps=ref_logps), logps, weighted_sums(batch.token_mask[None], kl, batch)[0]
    )
    (gradient,) = torch.autograd.grad(got.sum(), hidden)

    parts = [[t.split([n for pair in lengths for n in pair])[2 * p + r].tolist() for r in (0, 1)]
             for t in (own, other, targets) for p in range(3)]  # fmt: skip
    expected = [
        reference.tdpo_from_logits(parts[p], parts[3 + p], parts[6 + p], 0.3, scale, isinstance(method, TDPO1))
        for p in range(3)
    ]
    tolerance = TOLERANCE[dtype]
    values = torch.tensor([e[0] for e in expected], dtype=torch.float64)
    gradients = torch.tensor([token for e in expected for response in e[1] for token in response], dtype=torch.float64)
    torch.testing.assert_close(got.double(), values, rtol=tolerance, atol=0)
    largest = gradients.abs().max().item()
    torch.testing.assert_close(gradient.double(), gradients, rtol=tolerance, atol=tolerance * largest)


def head_of(vocabulary: int, dtype: torch.dtype) -> torch.nn.Linear:
    """A head whose logits are its input."""
    head = torch.nn.Linear(vocabulary, vocabulary, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.eye(vocabulary))
    return head
