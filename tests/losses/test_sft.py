import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import SFT, count_units
from tests.losses.pairs import TOLERANCE, batch_of, losses, random_pairs, scored_only
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_like_reference(dtype):
    pairs = random_pairs(0)
    batch, logps = batch_of(pairs, dtype)
    got = losses(SFT(), batch, logps)
    (gradient,) = torch.autograd.grad(got.sum(), logps)
    expected = [reference.sft(response) for pair in pairs for response in pair]
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        got.double(), torch.tensor([e[0] for e in expected], dtype=torch.float64), rtol=tolerance, atol=0
    )
    assert torch.equal(gradient.double(), scored_only([e[1] for e in expected], pairs))


def test_mean_over_tokens_worked_by_hand():
    pair = (Response([-1.0, -2.0], [0.0] * 2, [True] * 2), Response([-6.0], [0.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    assert (losses(SFT(), batch, logps).sum() / count_units(SFT.unit, batch)).item() == 3.0


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"loss\.normalization must be 'token', got 'sequence'"):
        SFT(normalization="sequence")
