"""Simple preference optimization, without a reference: SimPO and ConfPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pyprefopt.errors import check_scale
from pyprefopt.losses.method import Method, one_over, weighted_sums

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class SimPO(Method):
    """SimPO compares mean log-probs, without a reference.

    Loss of a pair: -log sigmoid(beta (S_w / |y_w| - S_l / |y_l|) - gamma), S the sum of log-probs over the response's
    scored tokens. `gamma` is the absolute target margin, as in TRL (some code takes gamma / beta).

    Source: Meng et al. 2024, Eq. 6.
    """

    beta: float = 2.5  # scale of the mean log-prob; usual 2 to 10
    gamma: float = 1.4  # target reward margin; usual 0.3 to 1.6 at beta 2.5

    def __post_init__(self) -> None:
        check_scale("loss.beta", self.beta, "usual range 2 to 10")
        check_scale("loss.gamma", self.gamma, "usual range 0.3 to 1.6 at beta 2.5", zero=True)

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 / |y| for each scored token: [1, M]."""
        return one_over(batch.response_length, batch)[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Beta times the mean log-prob, [R] (Eq. 4)."""
        return self.beta * sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the reward margin less the target margin, [P]."""
        return -F.logsigmoid(self.margin(sums, batch) - self.gamma)


@dataclass(frozen=True)
class ConfPO(SimPO):
    """ConfPO is SimPO over the tokens whose probability is at most their response's mean probability.

    The policy's own probabilities decide, anew at every step and without gradient; S is divided by the number selected.

    Source: Yoon et al. 2025.
    """

    beta: float = 1.5  # scale of the mean log-prob of the selected tokens; usual 1 to 10
    gamma: float = 1.6  # target reward margin; usual 0.3 to 1.6

    reads_unweighted = True  # tokens of user weight 0 are in the mean probability

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
