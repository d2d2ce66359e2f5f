"""What a loss must not forget where selection drops tokens, or where it draws them."""

import pytest
import torch

from pyprefopt.losses import TGDPO, SimPO, Temporal
from tests.losses.pairs import assert_like_reference, batch_of, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_simpo_divides_by_the_whole_length(dtype):
    assert_like_reference(SimPO(), reference.simpo, dtype, select=True)


def test_a_custom_shape_is_given_the_whole_length(tmp_path):
    (tmp_path / "shape.py").write_text("def of_length(rewards, length, side):\n    return 0 * rewards + length\n")
    batch, logps = batch_of(random_pairs(2, select=True), torch.float64)
    assert not torch.equal(batch.response_length, batch.scored_length)
    weights = TGDPO(shape=f"{tmp_path}/shape.py:of_length").token_weights(batch, logps.detach())[0]
    assert torch.equal(weights, batch.response_length[batch.response_index].double())


@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_the_two_responses_of_a_pair_are_sampled_at_one_place(decay):
    """Of the same length, or on the support of the shorter one: the draw is the pair's."""
    same = Response([-1.0] * 12, [0.0] * 12, [True] * 12)
    torch.manual_seed(0)
    for support, pairs in (("own", [(same, same)] * 3), ("common", random_pairs(4))):
        batch, logps = batch_of(pairs, torch.float64)
        method = Temporal(scale=1.0, decay=decay, estimator="sample", support=support)
        for _ in range(20):
            drawn = method.token_weights(batch, logps.detach())[0] > 0
            place = dict(zip(batch.response_index[drawn].tolist(), batch.token_position[drawn].tolist(), strict=True))
            places = [[place[int(r)] for r in side] for side in (batch.pair_chosen, batch.pair_rejected)]
            assert places[0] == places[1]
