from dataclasses import replace

import numpy as np
import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import RRHF, count_units
from tests.losses.pairs import TOLERANCE, losses
from tests.reference import losses as reference
from tests.reference.losses import Response
from tests.reference.packing import Group, pack_groups
from tests.reference.packing import Response as Packed

Prompt = tuple[list[Response], list[float]]


def random_prompts(seed: int, prompts: int = 4) -> list[Prompt]:
    """Two to six ragged responses a prompt; scores with ties."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(prompts):
        count = int(rng.integers(2, 7))
        lengths = rng.integers(1, 20, count)
        responses = [Response((-rng.exponential(2.0, n)).tolist(), [0.0] * n, [True] * n) for n in lengths]
        drawn.append((responses, rng.integers(0, 4, count).astype(float).tolist()))
    return drawn


def batch_of(prompts: list[Prompt], dtype: torch.dtype = torch.float64, layout: str = "shared"):
    groups = [
        Group([1, 2], [Packed([7] * len(r.policy), kind="response", score=s) for r, s in zip(*prompt, strict=True)])
        for prompt in prompts
    ]
    batch = pack_groups(groups, layout).to().map(lambda a: a.to(dtype) if a.is_floating_point() else a)
    flat = [value for responses, _ in prompts for r in responses for value in r.policy]
    return batch, torch.tensor(flat, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rank", "sft"), [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_like_reference(dtype, rank, sft):
    for seed in range(5):
        prompts = random_prompts(seed)
        batch, logps = batch_of(prompts, dtype)
        got = losses(RRHF(rank_weight=rank, sft_weight=sft), batch, logps)
        (gradient,) = torch.autograd.grad(got.sum(), logps)
        expected = [reference.rrhf(responses, scores, rank, sft) for responses, scores in prompts]
        by_prompt = got.new_zeros(len(prompts)).index_add(0, batch.response_group, got.detach())
        values = torch.tensor([e[0] for e in expected], dtype=torch.float64)
        gradients = torch.tensor([g for e in expected for gs in e[1] for g in gs], dtype=torch.float64)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(by_prompt.double(), values, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradient.double(), gradients, rtol=tolerance, atol=tolerance)


def test_worked_by_hand():
    """Means -1, -3, -2 with scores 1, 3, 2: hinges 2 (first over second), 1 (first over third), 1 (third over second).

    The likelihood of the second response, the best, is -6 over two tokens.
    """
    responses = [
        Response([-1.0], [0.0], [True]),
        Response([-2.0, -4.0], [0.0] * 2, [True] * 2),
        Response([-2.0, -2.0, -2.0], [0.0] * 3, [True] * 3),
    ]
    batch, logps = batch_of([(responses, [1.0, 3.0, 2.0])])
    assert losses(RRHF(), batch, logps).sum().item() == pytest.approx(2 + 1 + 1 + 6, rel=1e-12)
    assert count_units(RRHF().unit, batch).item() == 1


def test_ranked_as_scored_there_is_no_hinge():
    responses = [Response([-1.0], [0.0], [True]), Response([-2.0], [0.0], [True])]
    batch, logps = batch_of([(responses, [1.0, 0.0])])
    assert losses(RRHF(sft_weight=0.0), batch, logps).sum().item() == 0


def test_of_equal_scores_the_first_is_the_best_and_none_is_ranked():
    responses = [Response([-1.0], [0.0], [True]), Response([-2.0], [0.0], [True])]
    batch, logps = batch_of([(responses, [5.0, 5.0])])
    assert losses(RRHF(), batch, logps).tolist() == [1.0, 0.0]


def test_padding_and_other_prompts_change_nothing():
    prompts = random_prompts(3)
    batch, logps = batch_of(prompts)
    whole = losses(RRHF(), batch, logps)
    alone = [losses(RRHF(), *batch_of([prompt])) for prompt in prompts]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses(RRHF(), *batch_of(prompts, layout="separate")), whole, rtol=0, atol=0)


def test_order_of_responses_does_not_matter():
    (responses, _), *_ = random_prompts(8)
    scores = [float(i) for i in range(len(responses))]
    order = list(reversed(range(len(responses))))
    turned = ([responses[i] for i in order], [scores[i] for i in order])
    totals = [losses(RRHF(), *batch_of([prompt])).sum() for prompt in ((responses, scores), turned)]
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-12, atol=0)


def test_a_batch_that_counts_nothing_has_no_loss():
    batch, logps = batch_of(random_prompts(1, 1))
    rows = torch.full_like(batch.response_row, -1)
    empty = replace(batch, token_mask=torch.zeros_like(batch.token_mask), response_row=rows)
    assert losses(RRHF(), empty, logps).sum().item() == 0
    assert count_units(RRHF().unit, empty).item() == 0


def test_gradcheck():
    batch, logps = batch_of(random_prompts(2, 2))
    assert torch.autograd.gradcheck(lambda values: losses(RRHF(), batch, values), logps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_weight": -1.0}, r"loss\.rank_weight must be >= 0"),
        ({"sft_weight": -1.0}, r"loss\.sft_weight must be >= 0"),
        ({"rank_weight": 0.0, "sft_weight": 0.0}, "must be not both 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        RRHF(**settings)
