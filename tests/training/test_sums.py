"""What the step hands to a loss: weights are constants, whatever a method makes them of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, METHODS, SimPO
from pyprefopt.training.evaluation import evaluate
from pyprefopt.training.step import method_sums
from pyprefopt.types import Outputs, PackedBatch
from tests.losses.pairs import batch_of, made, random_pairs
from tests.reference.packing import Group, Response, pack_groups
from tests.training.toy import ToyLoader, ToyModel, make_groups


class ByConfidence(SimPO):
    """A method of one's own: a token counts its probability."""

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """[1, M]."""
        return (batch.token_mask * logps.exp())[None]


def test_no_gradient_goes_through_the_weights() -> None:
    batch, logps = batch_of(random_pairs(5), torch.float64)
    sums = method_sums(ByConfidence(), batch, logps)
    (gradient,) = torch.autograd.grad(sums.policy.sum(), logps)
    torch.testing.assert_close(gradient, logps.detach().exp())  # (1 + log p) p where the weight is no constant


def test_long_sums_are_as_exact_as_their_log_probs() -> None:
    """A float32 sum of 16,000 nats moves in steps of a thousandth, which the difference to the reference would show."""
    kinds = ("chosen", "rejected")
    responses = [Response([2] * 2000, kind=kind, values={"ref_logps": [0.0] * 2000}) for kind in kinds]
    logps = -8 - torch.rand(4000, generator=torch.Generator().manual_seed(0))
    sums = method_sums(DPO(), pack_groups([Group([1], responses)]).to(), logps)
    exact = logps.double().view(2, 2000).sum(1)
    assert (sums.policy[0] - exact).abs().max() < 1e-6


def test_a_micro_batchs_weights_are_asked_for_once() -> None:
    """A weight may be drawn: what is reported is then what was summed."""
    asked = []

    class Watched(SimPO):
        def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
            asked.append(len(logps))
            return -super().token_weights(batch, logps)

    groups = make_groups(9)
    metrics, _ = evaluate(ToyModel(), Watched(), ToyLoader(groups, batch=4, per_batch=2))
    assert sum(asked) == sum(len(response.ids) for group in groups for response in group.responses)
    assert metrics["eval_weights/negative"] == 1


@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if method.needs - {"reward_head"}])
def test_a_formula_that_reads_what_is_not_declared_says_what_to_declare(name: str) -> None:
    """Each need that is left out is asked for by name."""
    batch, logps = batch_of(random_pairs(5), torch.float64)
    for need in METHODS[name].needs:
        forgetful = type("Forgetful", (METHODS[name],), {"needs": METHODS[name].needs - {need}})
        method = forgetful(**vars(made(name)))
        given = replace(batch, token_rewards=None) if need == "token_rewards" else batch
        outputs = Outputs(logps, kl=logps)
        with pytest.raises(ConfigError, match=rf"^Forgetful\.needs must have '{need}', which its formula reads"):
            method.loss(method_sums(method, given, outputs), given)
