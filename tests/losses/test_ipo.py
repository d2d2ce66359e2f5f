import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import IPO
from tests.losses.pairs import assert_like_reference, batch_of, losses
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_like_reference(dtype, select, mean, beta):
    method = IPO(beta=beta, length_normalized=mean)
    assert_like_reference(
        method, lambda chosen, rejected: reference.ipo(chosen, rejected, beta, mean), dtype, select=select
    )


@pytest.mark.parametrize(("mean", "expected"), [(True, 9.0), (False, 4.0)])
def test_worked_by_hand(mean, expected):
    """Log-ratios 1, 1 and -1: margin 2 of means and 3 of sums; the target is 1 / (2 * 0.1) = 5."""
    pair = (Response([-1.0, -1.0], [-2.0, -2.0], [True] * 2), Response([-3.0], [-2.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    assert losses(IPO(beta=0.1, length_normalized=mean), batch, logps).item() == pytest.approx(expected, rel=1e-12)


def test_equal_models_are_as_far_from_the_target_as_it_is():
    pair = (Response([-1.0] * 3, [-1.0] * 3, [True] * 3), Response([-3.0], [-3.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    assert losses(IPO(beta=0.25), batch, logps).item() == pytest.approx(4.0, rel=1e-12)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"loss\.beta must be > 0 and finite, got 0; usual range 0\.01 to 1"):
        IPO(beta=0)
