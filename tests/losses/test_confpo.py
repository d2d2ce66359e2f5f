import math

import pytest
import torch

from pyprefopt.losses import ConfPO, SimPO
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
def test_like_reference(dtype, select):
    assert_like_reference(
        ConfPO(beta=2.0, gamma=0.7),
        lambda chosen, rejected: reference.confpo(chosen, rejected, 2.0, 0.7),
        dtype,
        select=select,
    )


def test_worked_by_hand():
    """Probabilities 0.9, 0.1, 0.2 have the mean 0.4: the last two count. Of 0.5, 0.7 the first."""
    log = [math.log(p) for p in (0.9, 0.1, 0.2, 0.5, 0.7)]
    pair = (Response(log[:3], [0.0] * 3, [True] * 3), Response(log[3:], [0.0] * 2, [True] * 2))
    batch, logps = batch_of([pair], torch.float64)
    weights = ConfPO().token_weights(batch, logps.detach())[0]
    assert weights.tolist() == pytest.approx([0.0, 0.5, 0.5, 1.0, 0.0])
    margin = (log[1] + log[2]) / 2 - log[3] - 0.1
    got = losses(ConfPO(beta=1.0, gamma=0.1), batch, logps).item()
    assert got == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-12)


def test_the_mask_follows_the_policy():
    pairs = random_pairs(2)
    batch, logps = batch_of(pairs, torch.float64)
    first = ConfPO().token_weights(batch, logps.detach()) > 0
    assert not torch.equal(ConfPO().token_weights(batch, logps.detach().roll(1)) > 0, first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", range(1, 40))
def test_equal_probabilities_are_all_selected(dtype, count):
    """Rounding must not put every token above the mean."""
    pair = (Response([-0.3] * count, [0.0] * count, [True] * count), Response([-1.0], [0.0], [True]))
    batch, logps = batch_of([pair], dtype)
    assert (ConfPO().token_weights(batch, logps.detach()) > 0).all()


def test_where_all_are_selected_it_is_simpo():
    pair = (Response([-0.3] * 4, [0.0] * 4, [True] * 4), Response([-1.0] * 3, [0.0] * 3, [True] * 3))
    batch, logps = batch_of([pair], torch.float64)
    torch.testing.assert_close(
        losses(ConfPO(beta=2.0, gamma=0.3), batch, logps), losses(SimPO(beta=2.0, gamma=0.3), batch, logps)
    )
