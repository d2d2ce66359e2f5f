import math

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, TISDPO
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(("k", "mu", "lower", "upper"), [(1.0, 1.0, -0.5, 1.5), (0.7, 2.0, -0.1, 0.1)])
def test_like_reference(dtype, select, k, mu, lower, upper):
    method = TISDPO(beta=0.3, weight_scale=k, weight_rate=mu, lower=lower, upper=upper)
    assert_like_reference(
        method,
        lambda chosen, rejected: reference.tis_dpo(chosen, rejected, 0.3, k, mu, lower, upper),
        dtype,
        select=select,
    )


def test_without_a_rate_it_is_dpo():
    batch, logps = batch_of(random_pairs(3, select=True), torch.float64)
    assert torch.equal(losses(TISDPO(weight_rate=0.0), batch, logps), losses(DPO(), batch, logps))


def test_weights_worked_by_hand():
    """1 and, clipped, 1.5 and -0.5 in the chosen response; the sign turned in the rejected one."""
    chosen = Response([-1.0] * 3, [-1.0] * 3, [True] * 3, rewards=[1.0, 9.0, -9.0])
    rejected = Response([-1.0] * 2, [-1.0] * 2, [True] * 2, rewards=[1.0, -9.0])
    batch, logps = batch_of([(chosen, rejected)], torch.float64)
    weights = TISDPO().token_weights(batch, logps.detach())[0]
    assert weights.tolist() == pytest.approx([math.exp(x) for x in (1.0, 1.5, -0.5, -1.0, 0.5)], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_scale": 0.0}, r"loss\.weight_scale must be > 0"),
        ({"weight_rate": -1.0}, r"loss\.weight_rate must be >= 0"),
        ({"lower": math.inf}, r"loss\.lower must be a finite number"),
        ({"upper": math.nan}, r"loss\.upper must be a finite number"),
        ({"lower": 2.0}, r"loss\.lower must be <= loss\.upper \(1\.5\), got 2\.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        TISDPO(**settings)
