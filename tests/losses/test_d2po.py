import math

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import D2PO, DPO, Temporal
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("decay", [0.98, 0.5, 1.0])
def test_d2po_like_reference(dtype, select, decay):
    method = D2PO(beta=0.3, decay=decay)
    assert_like_reference(
        method, lambda chosen, rejected: reference.d2po(chosen, rejected, 0.3, decay), dtype, select=select
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("support", ["own", "common"])
@pytest.mark.parametrize("decay", [0.9, 0.999, 1.0])
def test_temporal_like_reference(dtype, select, support, decay):
    method = Temporal(scale=4.0, decay=decay, support=support)
    assert_like_reference(
        method, lambda chosen, rejected: reference.temporal(chosen, rejected, 4.0, decay, support), dtype, select=select
    )


def test_without_decay_d2po_is_dpo():
    batch, logps = batch_of(random_pairs(3, select=True), torch.float64)
    assert torch.equal(losses(D2PO(decay=1.0), batch, logps), losses(DPO(), batch, logps))


def test_d2po_counts_from_zero():
    """Log-ratios 1, 1, 1 against 0: 1 + 0.5 + 0.25 at decay 0.5."""
    pair = (Response([-1.0] * 3, [-2.0] * 3, [True] * 3), Response([-1.0], [-1.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    expected = math.log1p(math.exp(-1.75))
    assert losses(D2PO(beta=1.0, decay=0.5), batch, logps).item() == pytest.approx(expected, rel=1e-12)


def test_positions_are_those_before_selection():
    """Only the third token is kept, and it still counts decay^2."""
    pair = (Response([-1.0] * 3, [-2.0] * 3, [False, False, True]), Response([-1.0], [-1.0], [True]))
    batch, logps = batch_of([pair], torch.float64)
    expected = math.log1p(math.exp(-0.25))
    assert losses(D2PO(beta=1.0, decay=0.5), batch, logps).item() == pytest.approx(expected, rel=1e-12)


def lengths_2_and_1():
    """Log-ratios 1, 4 (chosen) and 2 (rejected)."""
    pair = (Response([-1.0, -1.0], [-2.0, -5.0], [True] * 2), Response([-1.0], [-3.0], [True]))
    return batch_of([pair], torch.float64)


@pytest.mark.parametrize(
    ("support", "margin"),
    [("own", (1 + 0.5 * 4) / 1.5 - 2), ("common", 1 - 2)],
)
def test_temporal_worked_by_hand(support, margin):
    batch, logps = lengths_2_and_1()
    got = losses(Temporal(scale=2.0, decay=0.5, support=support), batch, logps).item()
    assert got == pytest.approx(math.log1p(math.exp(-2 * margin)), rel=1e-12)


@pytest.mark.parametrize("support", ["own", "common"])
@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_temporal_weights_are_a_distribution(support, decay):
    batch, logps = batch_of(random_pairs(4), torch.float64)
    weights = Temporal(scale=1.0, decay=decay, support=support).token_weights(batch, logps.detach())[0]
    for r in range(len(batch.response_row)):
        assert weights[batch.response_index == r].sum().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("support", ["own", "common"])
@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_a_sample_is_one_token_and_right_on_average(support, decay):
    batch, logps = batch_of(random_pairs(4, pairs=2, longest=6), torch.float64)
    torch.manual_seed(0)
    method = Temporal(scale=1.0, decay=decay, support=support, estimator="sample")
    draws = [method.token_weights(batch, logps.detach())[0] for _ in range(4000)]
    for r in range(len(batch.response_row)):
        assert all(draw[batch.response_index == r].sum() == 1 for draw in draws[:50])
    exact = Temporal(scale=1.0, decay=decay, support=support).token_weights(batch, logps.detach())[0]
    assert (torch.stack(draws).mean(0) - exact).abs().max() < 0.04  # 5 standard errors


def test_a_sample_is_the_same_again_from_the_same_seed():
    batch, logps = batch_of(random_pairs(4), torch.float64)
    method = Temporal(scale=1.0, decay=0.9, estimator="sample")
    torch.manual_seed(3)
    first = method.token_weights(batch, logps.detach())
    torch.manual_seed(3)
    assert torch.equal(method.token_weights(batch, logps.detach()), first)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (D2PO, {"decay": 0.0}, r"loss\.decay must be in \(0, 1\], got 0\.0"),
        (D2PO, {"decay": 1.1}, r"loss\.decay must be in \(0, 1\], got 1\.1"),
        (Temporal, {}, r"loss\.scale must be > 0 and finite, got nan; it has no default because no value is published"),
        (Temporal, {"scale": 1.0}, r"loss\.decay must be in \(0, 1\], got nan; it has no default"),
        (Temporal, {"scale": 1.0, "decay": 0.9, "estimator": "mean"}, r"loss\.estimator must be 'exact' or 'sample'"),
        (Temporal, {"scale": 1.0, "decay": 0.9, "support": "all"}, r"loss\.support must be 'own' or 'common'"),
    ],
)
def test_settings_are_checked(method, settings, message):
    with pytest.raises(ConfigError, match=message):
        method(**settings)
