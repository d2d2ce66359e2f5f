"""Confidence-based token selection (Yoon et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pyprefopt.losses.method import weighted_sums
from pyprefopt.losses.simpo import SimPO

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch


@dataclass(frozen=True)
class ConfPO(SimPO):
    """ConfPO (Yoon et al. 2025): SimPO over the tokens whose probability is at most their response's mean probability.

    The policy's own probabilities decide, anew at every step and without gradient; the mean is over those selected.
    """

    beta: float = 1.5  # scale of the mean log-prob of the selected tokens; usual 1 to 10
    gamma: float = 1.6  # target reward margin; usual 0.3 to 1.6

    reads_unweighted: ClassVar[bool] = True  # tokens of user weight 0 are in the mean probability

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 / (number selected) for each selected token: [1, M]."""
        here, counted = batch.response_index, batch.token_mask
        probs = logps.to(counted.dtype).exp() * counted
        mean = (weighted_sums(counted[None], probs, batch) / batch.scored_length.clamp(min=1))[0]
        # Rounding may lift all tokens of a response above their mean where they are equal: the least likely one is in.
        least = torch.ones_like(mean).scatter_reduce(0, here, probs, "amin")
        selected = counted * (probs <= mean[here].maximum(least[here]))
        count = weighted_sums(selected[None], counted, batch)[0].clamp(min=1)
        return (selected / count[here])[None]
