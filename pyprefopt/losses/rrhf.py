"""Rank responses to align with human feedback (Yuan et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.method import Need, TrainsOn, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class RRHF:
    """RRHF (Yuan et al. 2023, Eq. 2 to 4): n responses of a prompt are to be ranked as their scores rank them.

    A hinge on length-normalised log-probs for each pair of responses with different scores, and the likelihood of the
    best response (the first of them where scores tie). |y| counts the response's own tokens, never padding.
    """

    rank_weight: float = 1.0  # factor of the ranking term; the paper uses 1
    sft_weight: float = 1.0  # factor of the best response's negative log-likelihood (a sum); the paper uses 1

    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Unit] = "group"
    trains_on: ClassVar[TrainsOn] = "candidates"

    def __post_init__(self) -> None:
        check_scale("loss.rank_weight", self.rank_weight, "usual 1", zero=True)
        check_scale("loss.sft_weight", self.sft_weight, "usual 1", zero=True)
        both = self.rank_weight + self.sft_weight
        check(both > 0, "loss.rank_weight and loss.sft_weight", (self.rank_weight, self.sft_weight), "not both 0")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """1 / |y| for ranking, 1 for the likelihood: [2, M]."""
        mean = batch.token_mask / batch.response_length[batch.response_index]
        return torch.stack([mean, batch.token_mask])

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """Mean log-prob of a token, [R] (Eq. 2)."""
        return sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Each response's part of its prompt's loss, [R]; the trainer divides their sum by the number of prompts."""
        group, score = batch.response_group, batch.response_score
        order = torch.arange(len(group), device=group.device)
        same = group[:, None] == group[None]
        worse = same & (score[:, None] < score[None])  # [i, j]: i has the lower score
        tied_later = same & (score[:, None] == score[None]) & (order[:, None] > order[None])
        best = ~(worse | tied_later).any(1)
        mean, total = sums.policy[0], sums.policy[1]
        above = torch.where(worse, mean[:, None] - mean[None], torch.zeros_like(mean))
        likelihood = torch.where(best, total, torch.zeros_like(total))
        return self.rank_weight * torch.relu(above).sum(1) - self.sft_weight * likelihood  # Eq. 3, 4
