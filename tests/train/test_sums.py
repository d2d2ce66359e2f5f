"""What the step hands to a loss: weights are constants, whatever a method makes them of."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprefopt.losses import SimPO
from pyprefopt.train.step import method_sums
from pyprefopt.types import PackedBatch
from tests.losses.pairs import batch_of, random_pairs


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
