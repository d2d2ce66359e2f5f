"""What holds for every method, and the pieces that they share."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from pyprefopt.losses import METHODS, chosen_minus_rejected, count_units, weighted_sums
from pyprefopt.types import Sums
from tests.losses.pairs import batch_of, losses, random_pairs

PAIR_METHODS = sorted(name for name, method in METHODS.items() if method().unit == "pair")


def per_pair(name: str, pairs, layout: str = "shared") -> torch.Tensor:
    return losses(METHODS[name](), *batch_of(pairs, torch.float64, layout))


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("select", [False, True])
def test_gradcheck(name, select):
    batch, logps = batch_of(random_pairs(5, 3, select=select, longest=6), torch.float64)
    assert torch.autograd.gradcheck(lambda values: losses(METHODS[name](), batch, values), logps)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_order_of_pairs_does_not_matter(name):
    pairs = random_pairs(6, select=True)
    order = [3, 0, 5, 1, 4, 2]
    assert torch.equal(per_pair(name, [pairs[i] for i in order]), per_pair(name, pairs)[order])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_layout_does_not_matter(name):
    pairs = random_pairs(7, select=True)
    assert torch.equal(per_pair(name, pairs, "separate"), per_pair(name, pairs, "shared"))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_split_of_a_batch_does_not_matter(name):
    """Sums and counts of two micro-batches add up to those of one."""
    pairs = random_pairs(8, select=True)
    method = METHODS[name]()

    def totals(part) -> torch.Tensor:
        batch, logps = batch_of(part, torch.float64)
        return torch.stack([losses(method, batch, logps).sum(), count_units(method.unit, batch).double()])

    torch.testing.assert_close(totals(pairs[:2]) + totals(pairs[2:]), totals(pairs), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_swapped_responses_swap_the_margin(name):
    batch, logps = batch_of(random_pairs(9), torch.float64)
    method = METHODS[name]()
    weights = method.token_weights(batch, logps.detach())
    sums = Sums(policy=weighted_sums(weights, logps, batch), ref=weighted_sums(weights, batch.ref_logps, batch))
    swapped = replace(batch, pair_chosen=batch.pair_rejected, pair_rejected=batch.pair_chosen)
    margins = [chosen_minus_rejected(method.rewards(sums, b), b) for b in (batch, swapped)]
    assert torch.equal(margins[0], -margins[1])
    assert not torch.equal(method.loss(sums, batch), method.loss(sums, swapped))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_batch_that_counts_nothing_has_no_loss_and_no_gradient(name):
    """A rank with fewer micro-batches runs one masked token that belongs to no pair."""
    batch, logps = batch_of(random_pairs(1, 1, longest=2), torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    empty = replace(batch, token_mask=torch.zeros_like(batch.token_mask), pair_chosen=none, pair_rejected=none)
    total = losses(METHODS[name](), empty, logps).sum()
    (gradient,) = torch.autograd.grad(total, logps)
    assert total.item() == 0
    assert torch.equal(gradient, torch.zeros_like(logps))
    assert count_units(METHODS[name]().unit, empty).item() == 0


@pytest.mark.parametrize("name", sorted(METHODS))
def test_weights_carry_no_gradient(name):
    batch, logps = batch_of(random_pairs(2, select=True), torch.float64)
    weights = METHODS[name]().token_weights(batch, logps.detach())
    assert weights.shape == (1, logps.numel())
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


@pytest.mark.parametrize("name", sorted(METHODS))
def test_settings_are_frozen_with_defaults(name):
    method = METHODS[name]()
    assert method == METHODS[name]()
    with pytest.raises(AttributeError):
        setattr(method, fields(method)[0].name, 1)
