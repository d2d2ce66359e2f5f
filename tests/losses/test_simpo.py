import math

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import SimPO
from tests.losses.pairs import assert_like_reference, batch_of, losses
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 1.4), (10.0, 3.0), (2.0, 0.0)])
def test_like_reference(dtype, select, beta, gamma):
    """|y| counts the tokens before selection."""
    assert_like_reference(
        SimPO(beta=beta, gamma=gamma),
        lambda chosen, rejected: reference.simpo(chosen, rejected, beta, gamma),
        dtype,
        select=select,
    )


def test_worked_by_hand():
    # means -1 and -2: reward margin 2, less the target margin 0.5
    pair = (Response([-0.5, -1.5], [0.0, 0.0], [True, True]), Response([-2.0, -1.0, -3.0], [0.0] * 3, [True] * 3))
    batch, logps = batch_of([pair], torch.float64)
    assert losses(SimPO(beta=2.0, gamma=0.5), batch, logps).item() == pytest.approx(0.2014132779827524, rel=1e-12)


def test_length_is_normalised():
    """A response written twice has the same mean, so the same loss."""
    once = (Response([-0.5, -1.5], [0.0] * 2, [True] * 2), Response([-2.0], [0.0], [True]))
    twice = (Response([-0.5, -1.5] * 2, [0.0] * 4, [True] * 4), Response([-2.0], [0.0], [True]))
    one, two = (losses(SimPO(), *batch_of([pair], torch.float64)).item() for pair in (once, twice))
    assert one == pytest.approx(two, rel=1e-12)


def test_equal_means_and_no_target_margin_give_ln_2():
    pair = (Response([-1.0, -2.0, -3.0], [0.0] * 3, [True] * 3), Response([-2.0], [0.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    assert losses(SimPO(gamma=0.0), batch, logps).item() == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize(("settings", "name"), [({"beta": 0.0}, "beta"), ({"gamma": -0.1}, "gamma")])
def test_settings_are_checked(settings, name):
    with pytest.raises(ConfigError, match=rf"loss\.{name} must be >=? 0"):
        SimPO(**settings)
