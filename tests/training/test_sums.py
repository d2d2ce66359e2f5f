"""What the step hands to a loss: weights are constants, whatever a method makes them of."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprefopt.losses import DPO, SimPO
from pyprefopt.training.step import method_sums
from pyprefopt.types import PackedBatch
from tests.losses.pairs import batch_of, random_pairs
from tests.reference.packing import Group, Response, pack_groups


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
