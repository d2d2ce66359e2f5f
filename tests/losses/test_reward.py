from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import BradleyTerry
from pyprefopt.types import Sums
from tests.losses.pairs import batch_of, random_pairs
from tests.reference import losses as reference

BATCH, _ = batch_of(random_pairs(0, pairs=3), torch.float64)
SCORES = [0.5, -1.0, 2.0, 2.0, -3.0, 17.0]  # of each response; differences 1.5, 0 and -20


def losses(method: BradleyTerry, scores: torch.Tensor, **arrays: torch.Tensor) -> torch.Tensor:
    return method.loss(Sums(policy=scores[None]), replace(BATCH, **arrays))


def leaf(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_by_hand() -> None:
    got = losses(BradleyTerry(), leaf(SCORES))
    expected = [math.log1p(math.exp(-difference)) for difference in (1.5, 0.0, -20.0)]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
    assert got[1].item() == pytest.approx(math.log(2), rel=1e-15)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_like_reference(dtype: torch.dtype, tolerance: float, scale: float) -> None:
    draws = torch.Generator().manual_seed(0)
    scores, given = (3 * torch.randn(6, generator=draws, dtype=torch.float64) for _ in range(2))
    own = scores.to(dtype).requires_grad_()
    got = losses(BradleyTerry(margin_scale=scale), own, response_score=given.to(dtype))
    (gradient,) = torch.autograd.grad(got.sum(), own)
    values = [
        reference.bradley_terry(*scores[i : i + 2].tolist(), scale * (given[i] - given[i + 1]).item())
        for i in range(0, 6, 2)
    ]
    assert got.tolist() == pytest.approx([v[0] for v in values], rel=tolerance)
    assert gradient.tolist() == pytest.approx([g for v in values for g in v[1:]], rel=tolerance)


def test_gradient_pushes_the_two_apart() -> None:
    scores = leaf(SCORES)
    (gradient,) = torch.autograd.grad(losses(BradleyTerry(), scores).sum(), scores)
    pull = [1 / (1 + math.exp(difference)) for difference in (1.5, 0.0, -20.0)]
    assert gradient.tolist() == pytest.approx([side * p for p in pull for side in (-1, 1)], rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: losses(BradleyTerry(), s), scores)


def test_the_margin_comes_from_the_datas_scores() -> None:
    given = torch.tensor([3.0, 1.0, 0.5, 0.5, 1.0, 2.0])  # differences 2, 0 and -1
    got = losses(BradleyTerry(margin_scale=0.5), leaf(SCORES), response_score=given)
    expected = [math.log1p(math.exp(-difference)) for difference in (1.5 - 1.0, 0.0, -20.0 + 0.5)]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)


def test_without_a_margin_scores_may_be_absent() -> None:
    assert BATCH.response_score.isnan().all()
    assert losses(BradleyTerry(), leaf(SCORES)).isfinite().all()
    assert not BradleyTerry().reads_scores
    assert BradleyTerry(margin_scale=1.0).reads_scores


def test_the_reward_is_the_models_score() -> None:
    assert BradleyTerry().rewards(Sums(policy=leaf(SCORES)[None]), BATCH).tolist() == SCORES


def test_a_common_shift_changes_nothing() -> None:
    torch.testing.assert_close(losses(BradleyTerry(), leaf(SCORES)), losses(BradleyTerry(), leaf(SCORES) + 7))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"loss\.margin_scale must be >= 0 and finite, got -1"):
        BradleyTerry(margin_scale=-1)
