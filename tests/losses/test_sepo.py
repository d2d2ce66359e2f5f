import math

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import SePO, SimPO
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalizer", ["ratio", "selected"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_like_reference(dtype, normalizer, scale):
    method = SePO(reward_scale=scale, normalizer=normalizer)
    assert_like_reference(
        method, lambda chosen, rejected: reference.sepo(chosen, rejected, scale, normalizer), dtype, select=True
    )


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        # chosen: T 5, k 0.3 -> 2 selected with sum -1; rejected: T 4, k 0.5 -> 2 selected with sum -6
        ("ratio", math.log1p(math.exp(-7 / 3))),  # -1 / 1.5 + 6 / 2
        ("selected", math.log1p(math.exp(-5 / 2))),  # -1 / 2 + 6 / 2
    ],
)
def test_normalizers_worked_by_hand(normalizer, expected):
    chosen = Response([-9.0, -0.25, -9.0, -0.75, -9.0], [0.0] * 5, [False, True, False, True, False], 0.3)
    rejected = Response([-2.0, -9.0, -9.0, -4.0], [0.0] * 4, [True, False, False, True], 0.5)
    batch, logps = batch_of([(chosen, rejected)], torch.float64)
    assert losses(SePO(normalizer=normalizer), batch, logps).item() == pytest.approx(expected, rel=1e-9)


def test_tokens_that_are_not_selected_do_not_count():
    pairs = random_pairs(1, select=True)
    before = losses(SePO(), *batch_of(pairs, torch.float64))
    for response in (r for pair in pairs for r in pair):
        response.policy = [s if kept else s - 5 for s, kept in zip(response.policy, response.selected, strict=True)]
    assert torch.equal(losses(SePO(), *batch_of(pairs, torch.float64)), before)


@pytest.mark.parametrize("normalizer", ["ratio", "selected"])
def test_all_tokens_selected_is_simpo_without_target_margin(normalizer):
    batch, logps = batch_of(random_pairs(2), torch.float64)
    sepo = losses(SePO(reward_scale=2.5, normalizer=normalizer), batch, logps)
    torch.testing.assert_close(sepo, losses(SimPO(beta=2.5, gamma=0.0), batch, logps), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("settings", "name"), [({"reward_scale": 0.0}, "reward_scale"), ({"normalizer": "k"}, "normalizer")]
)
def test_settings_are_checked(settings, name):
    with pytest.raises(ConfigError, match=rf"loss\.{name} must be"):
        SePO(**settings)


def test_one_token_responses():
    pair = (Response([-1.0], [0.0], [True], 0.3), Response([-1.0], [0.0], [True], 0.3))
    batch, logps = batch_of([pair], torch.float64)
    assert losses(SePO(), batch, logps).item() == pytest.approx(math.log(2), rel=1e-12)
