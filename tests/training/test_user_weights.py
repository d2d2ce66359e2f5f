"""User weights in the sums that a method gets, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyprefopt.losses import METHODS
from pyprefopt.training.step import method_sums
from pyprefopt.types import Outputs
from tests.losses.pairs import REQUIRED, batch_of, random_pairs

WEIGHED = [n for n, method in METHODS.items() if method.trains_on == "pairs" and "reward_head" not in method.needs]


@pytest.mark.parametrize("name", WEIGHED)
def test_each_tokens_weight_multiplies_all_that_it_adds_to_a_response(name: str) -> None:
    method = METHODS[name](**REQUIRED.get(name, {}))
    batch, logps = batch_of(random_pairs(3), torch.float64)
    generator = torch.Generator().manual_seed(0)
    given, kl, rewards = (torch.rand(len(logps), generator=generator, dtype=torch.float64) for _ in range(3))
    given[::3] = 0
    batch = replace(batch, token_rewards=rewards, user_weights=given)
    outputs = Outputs(logps=logps.detach(), kl=kl)
    sums = method_sums(method, batch, outputs)
    weights = method.token_weights(batch, logps.detach()).tolist()
    response, count = batch.response_index.tolist(), len(batch.response_row)
    for k, own in enumerate(weights):
        for values, found in ((logps.tolist(), sums.policy), (batch.ref_logps.tolist(), sums.ref)):
            if found is not None:
                assert found[k].tolist() == pytest.approx(added(response, count, own, given.tolist(), values))
    if "ref_kl" in method.needs:
        assert sums.kl.tolist() == pytest.approx(added(response, count, [1.0] * len(kl), given.tolist(), kl.tolist()))
    assert batch.response_length.tolist() == replace(batch, user_weights=None).response_length.tolist()


def added(response: list[int], count: int, *factors: list[float]) -> list[float]:
    """The sum over each response's tokens of the product of the factors."""
    sums = [0.0] * count
    for place, *values in zip(response, *factors, strict=True):
        product = 1.0
        for value in values:
            product *= value
        sums[place] += product
    return sums
