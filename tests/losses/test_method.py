"""What holds for every method, and the pieces that they share."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS, chosen_minus_rejected, count_units, weighted_sums
from pyprefopt.losses.method import side_signs
from tests.losses.pairs import batch_of, kl_of, losses, made, random_pairs, sums_of
from tests.reference.losses import Response

ON_TOKENS = sorted(name for name, method in METHODS.items() if "reward_head" not in method.needs)
PAIR_METHODS = sorted(name for name in ON_TOKENS if made(name).unit == "pair")
# Gradients are stopped inside: their tests compare with the derivative as the papers define it.
STOPPED = {"dpo-reg": {"sequence_weight": "static"}, "simpo-reg": {"sequence_weight": "static"}}


def scored_batch(pairs, layout: str = "shared", dtype: torch.dtype = torch.float64):
    """With scores, as candidate sets have them: rejected responses below chosen ones."""
    batch, logps = batch_of(pairs, dtype, layout)
    score = torch.zeros(len(batch.response_row)).index_fill(0, batch.pair_chosen, 1.0)
    return replace(batch, response_score=score), logps


def per_unit(name: str, pairs, layout: str = "shared") -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each unit, and the gradient of their sum by the log-probs, [M]."""
    batch, logps = scored_batch(pairs, layout)
    values = losses(made(name), batch, logps)
    return values.detach(), torch.autograd.grad(values.sum(), logps)[0]


@pytest.mark.parametrize("name", ON_TOKENS)
@pytest.mark.parametrize("select", [False, True])
def test_gradcheck(name, select):
    pairs = random_pairs(5, 3, select=select, longest=6)
    batch, logps = scored_batch(pairs)
    method = replace(made(name), **STOPPED.get(name, {}))
    kl = kl_of(pairs, torch.float64) if name == "tdpo2" else None
    assert torch.autograd.gradcheck(lambda values: losses(method, batch, values, kl), logps)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_order_of_pairs_does_not_matter(name):
    pairs = random_pairs(6, select=True)
    order = [3, 0, 5, 1, 4, 2]
    values, gradient = per_unit(name, pairs)
    other_values, other_gradient = per_unit(name, [pairs[i] for i in order])
    tokens = gradient.split([sum(sum(r.selected) for r in pair) for pair in pairs])
    assert torch.equal(other_values, values[order])
    torch.testing.assert_close(other_gradient, torch.cat([tokens[i] for i in order]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_layout_does_not_matter(name):
    pairs = random_pairs(7, select=True)
    for one, other in zip(per_unit(name, pairs, "separate"), per_unit(name, pairs, "shared"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_split_of_a_batch_does_not_matter(name):
    """Sums and counts of two micro-batches add up to those of one."""
    pairs = random_pairs(8, select=True)
    method = made(name)

    def totals(part) -> torch.Tensor:
        batch, logps = scored_batch(part)
        return torch.stack([losses(method, batch, logps).sum(), count_units(method.unit, batch).double()])

    torch.testing.assert_close(totals(pairs[:2]) + totals(pairs[2:]), totals(pairs), rtol=1e-12, atol=0)
    gradients = [per_unit(name, part)[1] for part in (pairs[:2], pairs[2:])]
    torch.testing.assert_close(torch.cat(gradients), per_unit(name, pairs)[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_swapped_responses_swap_the_margin(name):
    batch, logps = batch_of(random_pairs(9), torch.float64)
    method = made(name)
    sums = sums_of(method, batch, logps)
    swapped = replace(batch, pair_chosen=batch.pair_rejected, pair_rejected=batch.pair_chosen)
    margins = [chosen_minus_rejected(method.rewards(sums, b), b) for b in (batch, swapped)]
    assert torch.equal(margins[0], -margins[1])
    assert not torch.equal(method.loss(sums, batch), method.loss(sums, swapped))


@pytest.mark.parametrize("name", ON_TOKENS)
def test_batch_that_counts_nothing_has_no_loss_and_no_gradient(name):
    """A rank with fewer micro-batches runs one masked token that belongs to no pair."""
    batch, logps = batch_of(random_pairs(1, 1, longest=2), torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    rows = torch.full_like(batch.response_row, -1)
    empty = replace(
        batch, token_mask=torch.zeros_like(batch.token_mask), pair_chosen=none, pair_rejected=none, response_row=rows
    )
    total = losses(made(name), empty, logps).sum()
    (gradient,) = torch.autograd.grad(total, logps)
    assert total.item() == 0
    assert torch.equal(gradient, torch.zeros_like(logps))
    assert count_units(made(name).unit, empty).item() == 0


@pytest.mark.parametrize("name", ON_TOKENS)
def test_weights_carry_no_gradient(name):
    batch, logps = batch_of(random_pairs(2, select=True), torch.float64)
    weights = made(name).token_weights(batch, logps.detach())
    assert weights.shape[0] in (1, 2)
    assert weights.shape[1:] == logps.shape
    assert not weights.requires_grad


def test_weighted_sums_against_a_loop():
    batch, logps = batch_of(random_pairs(3), torch.float64)
    weights = torch.rand(2, logps.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, batch.response_row.numel(), dtype=torch.float64)
    for k in range(2):
        for m, r in enumerate(batch.response_index.tolist()):
            expected[k, r] += weights[k, m] * logps[m].detach()
    got = weighted_sums(weights, logps, batch)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_float32_weights_do_not_lower_float64_sums():
    batch, logps = batch_of(random_pairs(3), torch.float64)
    single = batch.map(lambda array: array.float() if array.is_floating_point() else array)
    assert weighted_sums(single.token_mask[None], logps, single).dtype == torch.float64


def test_count_units():
    pairs = random_pairs(4, 3)
    batch, logps = batch_of(pairs, torch.float32)
    assert count_units("pair", batch) == 3
    assert count_units("group", batch) == 3
    assert count_units("token", batch) == logps.numel() == sum(len(r.policy) for pair in pairs for r in pair)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_settings_are_frozen_with_defaults(name):
    method = made(name)
    assert method == made(name)
    with pytest.raises(AttributeError):
        setattr(method, fields(method)[0].name, 1)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_number_of_the_settings_is_finite(name, value):
    for setting in (f.name for f in fields(METHODS[name]) if f.type == "float"):
        with pytest.raises(ConfigError, match=rf"loss\.{setting}\b.* must be"):
            replace(made(name), **{setting: value})


def test_signs_of_the_sides():
    batch, _ = batch_of(random_pairs(4, 3), torch.float64)
    chosen = torch.isin(batch.response_index, batch.pair_chosen)
    assert torch.equal(side_signs(batch), torch.where(chosen, 1.0, -1.0).double())


# --- equal models ------------------------------------------------------------------------------------------------

LN_2 = ["dpo", "d2po", "temporal", "tdpo1", "tdpo2", "tgdpo", "tis-dpo"]
NO_MARGIN = [*LN_2, "ipo", "dpo-reg", "dpo-sft"]  # their loss has something beside the margin, or another target than 0


@pytest.mark.parametrize("name", NO_MARGIN)
@pytest.mark.parametrize("select", [False, True])
def test_equal_models_have_no_margin(name, select):
    """Margin 0 and ln 2, exactly."""
    batch, _ = batch_of(random_pairs(13, select=select), torch.float32)
    method = made(name)
    sums = sums_of(method, batch, batch.ref_logps.clone(), torch.zeros(len(batch.response_row)))
    rewards, loss = method.rewards(sums, batch), method.loss(sums, batch)
    assert torch.equal(rewards, torch.zeros_like(rewards))
    if name in LN_2:
        assert torch.equal(loss, torch.full_like(loss, math.log(2)))


# --- user weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_TOKENS)
def test_user_weights_change_the_loss_and_ones_do_not(name):
    batch, logps = scored_batch(random_pairs(11, longest=8))
    ones = replace(batch, user_weights=torch.ones_like(logps.detach()))
    halves = replace(batch, user_weights=torch.full_like(logps.detach(), 0.5))
    kl = kl_of(random_pairs(11, longest=8), torch.float64)
    before = losses(made(name), batch, logps, kl)
    assert torch.equal(losses(made(name), ones, logps, kl), before)
    assert not torch.allclose(losses(made(name), halves, logps, kl), before)


@pytest.mark.parametrize("name", [name for name in ON_TOKENS if name != "confpo"])
@pytest.mark.parametrize("select", [False, True])
def test_user_weights_multiply_what_a_token_counts(name, select):
    """As if both log-probs (and the divergence) of each token were that many times as large; no length changes.

    ConfPO chooses its tokens by the log-probs.
    """
    pairs = random_pairs(12, select=select)
    batch, logps = scored_batch(pairs)
    weights = torch.rand(logps.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    scaled = replace(batch, ref_logps=batch.ref_logps * weights)
    kl = kl_of(pairs, torch.float64)  # of whole responses, so the same in both
    got = losses(made(name), replace(batch, user_weights=weights), logps, kl)
    torch.testing.assert_close(got, losses(made(name), scaled, logps * weights, kl), rtol=1e-10, atol=1e-12)


# --- edges --------------------------------------------------------------------------------------------------------


def one(policy: list[float], ref: list[float] | None = None, reward: float = 0.5) -> Response:
    n = len(policy)
    return Response(policy, ref or [-1.0] * n, [True] * n, 1.0, [reward] * n, [0.1] * n)


LONG = [-2.0, -0.5, -1.0, -3.0] * 500
EDGES = {
    "one token each": (one([-1.0]), one([-2.0])),
    "equal responses": (one([-1.0, -2.0]), one([-1.0, -2.0])),
    "all probabilities equal": (one([-0.3] * 7), one([-0.3] * 3)),
    "certain": (one([0.0, 0.0]), one([-700.0, -800.0])),
    "hopeless": (one([-700.0, -800.0]), one([0.0, 0.0])),
    "very long": (one(LONG), one([-1.0])),
    "large rewards": (one([-1.0, -2.0], reward=50.0), one([-1.0], reward=-50.0)),
}


@pytest.mark.parametrize("name", ON_TOKENS)
@pytest.mark.parametrize("edge", sorted(EDGES))
def test_edges_stay_finite(name, edge):
    batch, logps = scored_batch([EDGES[edge]], dtype=torch.float32)
    total = losses(made(name), batch, logps).sum()
    (gradient,) = torch.autograd.grad(total, logps)
    assert total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ON_TOKENS)
def test_a_token_of_weight_zero_counts_nothing_even_at_minus_infinity(name):
    """A user weight of 0 takes a token out, whatever its log-prob is."""
    pair = (one([-1.0, -2.0, -0.5]), one([-1.5, -0.7]))
    batch, logps = scored_batch([pair])
    method, kl = made(name), torch.tensor([0.2, 0.3], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    outcomes = []
    for value in (-2.0, -math.inf) if name != "confpo" else (-3.0, -math.inf):  # ConfPO selects by the probability
        values = logps.detach().index_fill(0, torch.tensor(1), value).requires_grad_()
        total = losses(method, replace(batch, user_weights=weights), values, kl).sum()
        (gradient,) = torch.autograd.grad(total, values)
        outcomes.append((total, gradient))
    if name == "confpo":  # the mean moves with the probability: finite is what can be asked for
        assert outcomes[1][0].isfinite()
        assert outcomes[1][1].isfinite().all()
    else:
        assert torch.equal(outcomes[0][0], outcomes[1][0])
        assert torch.equal(outcomes[0][1], outcomes[1][1])


@pytest.mark.parametrize("name", ON_TOKENS)
def test_a_response_without_a_scored_token_counts_zero(name):
    """Truncation and masks can leave a response with nothing to weight."""
    whole, removed = one([-1.0, -2.0]), one([-1.0, -3.0])
    removed.selected = [False, False]
    batch, logps = scored_batch([(whole, removed)])
    total = losses(made(name), batch, logps).sum()
    (gradient,) = torch.autograd.grad(total, logps)
    assert total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("side", ["chosen", "rejected", "both", "reference"])
@pytest.mark.parametrize("name", ON_TOKENS)
def test_minus_infinity_is_no_silent_nan(name, side):
    """An impossible token gives a finite loss with a finite gradient, or a loss that stops the run."""
    pairs = [(one([-1.0, -2.0, -0.5]), one([-1.5, -0.7])), (one([-1.0]), one([-2.0, -1.0]))]
    batch, logps = scored_batch(pairs)
    places = torch.tensor({"chosen": [1], "rejected": [3], "both": [1, 3], "reference": [1]}[side])
    if side == "reference":
        values, batch = logps, replace(batch, ref_logps=batch.ref_logps.index_fill(0, places, -math.inf))
    else:
        values = logps.detach().index_fill(0, places, -math.inf).requires_grad_()
    kl = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64)
    loss = losses(made(name), batch, values, kl)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    group = batch.response_group[batch.response_index]
    finite = loss.isfinite() if len(loss) == 2 else torch.stack([loss[:2].sum(), loss[2:].sum()]).isfinite()
    assert finite[1]  # the other pair
    assert gradient[group == 1].isfinite().all()
    if finite[0]:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ON_TOKENS)
def test_weights_of_zero_everywhere_are_finite(name):
    pairs = random_pairs(14, 3)
    batch, logps = scored_batch(pairs)
    batch = replace(batch, user_weights=torch.zeros_like(logps.detach()))
    loss = losses(made(name), batch, logps, torch.zeros(6, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.isfinite().all()
    assert torch.equal(gradient, torch.zeros_like(gradient))
