import math

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(("beta", "label_smoothing"), [(0.1, 0.0), (0.5, 0.1), (0.01, 0.49)])
def test_like_reference(dtype, select, beta, label_smoothing):
    method = DPO(beta=beta, label_smoothing=label_smoothing)
    assert_like_reference(
        method, lambda chosen, rejected: reference.dpo(chosen, rejected, beta, label_smoothing), dtype, select=select
    )


def pair_with_margin(margin: float) -> list[tuple[Response, Response]]:
    chosen = Response([-1.0, -1.0], [-1.0 - margin / 2, -1.0 - margin / 2], [True, True])
    rejected = Response([-3.0], [-3.0], [True])
    return [(chosen, rejected)]


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(20.0, 0.1269280110429725), (0.0, math.log(2)), (-20.0, 2.1269280110429725)],  # softplus(-0.1 margin)
)
def test_worked_by_hand(margin, expected):
    batch, logps = batch_of(pair_with_margin(margin), torch.float64)
    assert losses(DPO(beta=0.1), batch, logps).item() == pytest.approx(expected, rel=1e-12)


def test_label_smoothing_worked_by_hand():
    batch, logps = batch_of(pair_with_margin(20.0), torch.float64)
    expected = 0.9 * 0.1269280110429725 + 0.1 * 2.1269280110429725
    assert losses(DPO(beta=0.1, label_smoothing=0.1), batch, logps).item() == pytest.approx(expected, rel=1e-12)


def test_equal_models_have_no_margin():
    batch, _ = batch_of(random_pairs(3), torch.float32)
    got = losses(DPO(beta=0.3), batch, batch.ref_logps.clone().requires_grad_())
    assert torch.equal(got, torch.full_like(got, math.log(2)))


@pytest.mark.parametrize("shift", [-30.0, 7.0])
def test_a_shift_of_both_responses_changes_nothing(shift):
    """Only the difference of the two sums is compared."""
    pairs = random_pairs(4)
    before = losses(DPO(beta=0.3), *batch_of(pairs, torch.float64))
    for response in (r for pair in pairs for r in pair):
        response.policy[0] += shift
    torch.testing.assert_close(losses(DPO(beta=0.3), *batch_of(pairs, torch.float64)), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("margin", "expected"), [(1e6, 0.0), (-1e6, 1e5)])
def test_extreme_margins_stay_finite(margin, expected):
    batch, logps = batch_of(pair_with_margin(margin), torch.float32)
    loss = losses(DPO(beta=0.1), batch, logps)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.1}, r"loss\.beta must be > 0 and finite, got -0\.1; usual range 0\.01 to 0\.5"),
        ({"label_smoothing": 0.5}, r"loss\.label_smoothing must be in \[0, 0\.5\), got 0\.5"),
        ({"beta": math.nan}, r"loss\.beta must be > 0 and finite, got nan"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        DPO(**settings)
