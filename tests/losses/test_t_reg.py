import math
from dataclasses import replace

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, DPOSFT, TGDPO, DPOReg, SimPO, SimPOReg
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response

WEIGHTS = ["gradient", "static", "none"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_reg_like_reference(dtype, select, weight, smoothing):
    method = DPOReg(beta=0.3, label_smoothing=smoothing, alpha=0.25, sequence_weight=weight)

    def twin(chosen, rejected):
        w = reference.gradient_weight(chosen, rejected, 0.3) if weight == "gradient" else 1.0
        plain = reference.dpo(chosen, rejected, 0.3, smoothing)
        return reference.regularized(chosen, rejected, plain, w, 0.25, 0.3)

    assert_like_reference(method, twin, dtype, select=select)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("select", [False, True])
def test_simpo_reg_like_reference(dtype, weight, length_norm, select):
    method = SimPOReg(beta=2.0, gamma=0.5, alpha=0.25, sequence_weight=weight, reg_length_norm=length_norm)

    def twin(chosen, rejected):
        w = reference.gradient_weight(chosen, rejected, 2.0, 0.5) if weight == "gradient" else 1.0
        plain = reference.simpo(chosen, rejected, 2.0, 0.5)
        return reference.regularized(chosen, rejected, plain, w, 0.25, 2.0, length_norm)

    assert_like_reference(method, twin, dtype, select=select)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("method", [DPOReg, SimPOReg])
def test_with_alpha_inf_the_regulariser_stands_alone(method, weight, select, dtype):
    """Its limit: the loss over alpha, for alpha without end."""

    def twin(chosen, rejected):
        gamma = None if method is DPOReg else 0.5
        w = reference.gradient_weight(chosen, rejected, 2.0, gamma) if weight == "gradient" else 1.0
        nothing = (0.0, [0.0] * len(chosen.policy), [0.0] * len(rejected.policy))
        return reference.regularized(chosen, rejected, nothing, w, 1.0, 2.0, method is SimPOReg)

    own = {} if method is DPOReg else {"gamma": 0.5}
    assert_like_reference(method(beta=2.0, alpha="inf", sequence_weight=weight, **own), twin, dtype, select=select)
    assert method(alpha=math.inf) == method(alpha="inf")


def test_the_limit_of_a_large_alpha_is_inf():
    batch, logps = batch_of(random_pairs(4), torch.float64)
    large, alone = (losses(DPOReg(alpha=alpha), batch, logps) for alpha in (1e12, "inf"))
    torch.testing.assert_close(large / 1e12, alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
def test_dpo_sft_like_reference(dtype, select):
    method = DPOSFT(beta=0.3, alpha=0.2)
    assert_like_reference(
        method, lambda chosen, rejected: reference.dpo_sft(chosen, rejected, 0.3, 0.2), dtype, select=select
    )


@pytest.mark.parametrize(
    ("method", "plain"), [(DPOReg(alpha=0.0), DPO()), (DPOSFT(alpha=0.0), DPO()), (SimPOReg(alpha=0.0), SimPO())]
)
def test_without_the_term_it_is_the_plain_loss(method, plain):
    batch, logps = batch_of(random_pairs(3, select=True), torch.float64)
    assert torch.equal(losses(method, batch, logps), losses(plain, batch, logps))


@pytest.mark.parametrize("select", [False, True])
def test_the_known_gradient_of_dpo_reg(select):
    """-beta w [sum (1 + alpha r) grad s of chosen - sum (1 - alpha r) grad s of rejected], w DPO's gradient weight."""
    beta, alpha = 0.3, 0.4
    batch, logps = batch_of(random_pairs(6, select=select), torch.float64)
    (got,) = torch.autograd.grad(losses(DPOReg(beta=beta, alpha=alpha), batch, logps).sum(), logps)
    (by_margin,) = torch.autograd.grad(losses(DPO(beta=beta), batch, logps).sum(), logps)
    side = torch.where(torch.isin(batch.response_index, batch.pair_chosen), 1.0, -1.0).double()
    torch.testing.assert_close(got, by_margin * (1 + alpha * side * batch.token_rewards), rtol=1e-10, atol=1e-14)


def test_dpo_reg_goes_where_tgdpo_goes_from_equal_models():
    """At the start both margins are 0, so the two gradients are equal."""
    batch, _ = batch_of(random_pairs(6), torch.float64)
    logps = batch.ref_logps.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(losses(method, batch, logps).sum(), logps)[0]
        for method in (DPOReg(alpha=0.4), TGDPO(alpha=0.4))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)


def worked():
    """Equal models, S -2 and -3; sums of reward times log-prob -0.25 - 0.75 = -1 and 0.5 * -3 = -1.5."""
    chosen = Response([-0.5, -1.5], [-0.5, -1.5], [True] * 2, rewards=[0.5, 0.5])
    return batch_of([(chosen, Response([-3.0], [-3.0], [True], rewards=[0.5]))], torch.float64)


@pytest.mark.parametrize(
    ("settings", "term"), [({"sequence_weight": "gradient"}, 0.5 * 2.5), ({"sequence_weight": "static"}, 2.5)]
)
def test_dpo_reg_worked_by_hand(settings, term):
    got = losses(DPOReg(beta=0.1, alpha=2.0, **settings), *worked()).item()
    assert got == pytest.approx(math.log(2) + 2.0 * 0.1 * term, rel=1e-12)


@pytest.mark.parametrize(("length_norm", "sums"), [(True, 0.5 + 1.5), (False, 1.0 + 1.5)])
def test_simpo_reg_worked_by_hand(length_norm, sums):
    """Means -1 and -3: margin 2 - 0.5, weight sigmoid(-1.5)."""
    method = SimPOReg(beta=1.0, gamma=0.5, alpha=2.0, reg_length_norm=length_norm)
    weight = 1 / (1 + math.exp(1.5))
    assert losses(method, *worked()).item() == pytest.approx(math.log1p(math.exp(-1.5)) + 2 * weight * sums, rel=1e-12)


def test_dpo_sft_raises_the_chosen_response():
    batch, logps = worked()
    assert losses(DPOSFT(alpha=0.1), batch, logps).item() == pytest.approx(math.log(2) + 0.1 * 2.0, rel=1e-12)
    (gradient,) = torch.autograd.grad(losses(DPOSFT(alpha=0.1), batch, logps).sum(), logps)
    (plain,) = torch.autograd.grad(losses(DPO(), batch, logps).sum(), logps)
    torch.testing.assert_close(gradient - plain, torch.tensor([-0.1, -0.1, 0.0]).double(), rtol=1e-6, atol=1e-12)


def test_rewards_of_zero_leave_the_plain_loss():
    batch, logps = batch_of(random_pairs(3), torch.float64)
    silent = replace(batch, token_rewards=torch.zeros_like(batch.token_rewards))
    assert torch.equal(losses(DPOReg(alpha=0.5), silent, logps), losses(DPO(), batch, logps))


@pytest.mark.parametrize("method", [DPOReg, SimPOReg])
def test_settings_are_checked(method):
    with pytest.raises(ConfigError, match=r"loss\.alpha must be >= 0, or inf, got -1; usual range 0\.1 to 0\.5"):
        method(alpha=-1)
    with pytest.raises(ConfigError, match=r"loss\.sequence_weight must be one of gradient, static, none, got 'mean'"):
        method(sequence_weight="mean")


def test_the_sft_terms_strength_is_checked():
    with pytest.raises(ConfigError, match=r"loss\.alpha must be >= 0 and finite, got -1"):
        DPOSFT(alpha=-1)
