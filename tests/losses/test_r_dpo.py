import math

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, RDPO
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 0.01), (0.5, 0.2)])
def test_like_reference(dtype, select, beta, alpha):
    method = RDPO(beta=beta, alpha=alpha)
    assert_like_reference(
        method, lambda chosen, rejected: reference.r_dpo(chosen, rejected, beta, alpha), dtype, select=select
    )


def test_without_a_penalty_it_is_dpo():
    batch, logps = batch_of(random_pairs(3, select=True), torch.float64)
    assert torch.equal(losses(RDPO(alpha=0.0), batch, logps), losses(DPO(), batch, logps))


def test_worked_by_hand():
    """Equal models; the chosen response has 3 tokens, the rejected one: margin 0.5 * 2."""
    pair = (Response([-1.0] * 3, [-1.0] * 3, [True] * 3), Response([-1.0], [-1.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    assert losses(RDPO(alpha=0.5), batch, logps).item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-12)


def test_a_long_chosen_response_is_pushed_less():
    """The length explains part of the preference, so the gradient of a longer chosen response is smaller than DPO's."""
    pair = (Response([-1.0] * 9, [-1.0] * 9, [True] * 9), Response([-1.0], [-1.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    slopes = [torch.autograd.grad(losses(m, batch, logps).sum(), logps)[0][0].item() for m in (RDPO(alpha=0.1), DPO())]
    assert slopes[1] < slopes[0] < 0


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"loss\.alpha must be >= 0 and finite, got -1"):
        RDPO(alpha=-1)
