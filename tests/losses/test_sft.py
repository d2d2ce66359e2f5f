from dataclasses import replace

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import SFT, count_units
from tests.losses.pairs import TOLERANCE, batch_of, losses, random_pairs, scored_only
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_like_reference(dtype, masked):
    pairs = random_pairs(0, select=masked)
    batch, logps = batch_of(pairs, dtype)
    got = losses(SFT(), batch, logps)
    (gradient,) = torch.autograd.grad(got.sum(), logps)
    expected = [reference.sft(response) for pair in pairs for response in pair]
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        got.double(), torch.tensor([e[0] for e in expected], dtype=torch.float64), rtol=tolerance, atol=0
    )
    assert torch.equal(gradient.double(), scored_only([e[1] for e in expected], pairs))


@pytest.mark.parametrize(("normalization", "expected"), [("token", 3.0), ("sequence", 4.5)])
def test_mean_worked_by_hand(normalization, expected):
    """Sums -3 over two tokens and -6 over one: 9 / 3 tokens, or 9 / 2 responses."""
    one = Response([-1.0, -2.0], [0.0] * 2, [True] * 2)
    other = Response([-6.0], [0.0], [True])
    batch, logps = batch_of([(one, other)], torch.float64)
    batch = replace(batch, response_group=torch.tensor([0, 1]))  # SFT's groups have one response each
    method = SFT(normalization=normalization)
    assert (losses(method, batch, logps).sum() / count_units(method.unit, batch)).item() == expected


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"loss\.normalization must be 'token' or 'sequence', got 'mean'"):
        SFT(normalization="mean")
