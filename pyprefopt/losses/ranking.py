"""Scores of whole responses: RRHF ranks by them, a reward model learns them (Bradley and Terry 1952)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.method import Method, chosen_minus_rejected, one_over

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class RRHF(Method):
    """RRHF ranks n responses of a prompt as their scores rank them.

    Loss of a prompt: the sum of max(0, p_i - p_j) over its pairs of responses with score_i < score_j, p the mean
    log-prob, and the negative log-likelihood (a sum) of the best response (the first of them where scores tie). |y|
    counts the response's own tokens, never padding.

    Source: Yuan et al. 2023, Eq. 2 to 4.
    """

    rank_weight: float = 1.0  # factor of the ranking term; the paper uses 1
    sft_weight: float = 1.0  # factor of the best response's negative log-likelihood (a sum); the paper uses 1

    unit = "group"
    trains_on = "candidates"

    def __post_init__(self) -> None:
        check_scale("loss.rank_weight", self.rank_weight, "usual 1", zero=True)
        check_scale("loss.sft_weight", self.sft_weight, "usual 1", zero=True)
        both = self.rank_weight + self.sft_weight
        check(both > 0, "loss.rank_weight and loss.sft_weight", (self.rank_weight, self.sft_weight), "not both 0")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 / |y| for ranking (Eq. 2: the mean log-prob is the reward), 1 for the likelihood: [2, M]."""
        return torch.stack([one_over(batch.response_length, batch), batch.token_mask])

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


@dataclass(frozen=True)
class BradleyTerry(Method):
    """Reward model whose score of the chosen response must be the higher one.

    Loss of a pair: -log sigmoid(r_w - r_l - margin), r a score of the whole response, read at its last token. The
    reward is the score; no token has a weight. `margin_scale` times the difference of the data's scores is the margin.

    Source: Bradley and Terry 1952; the margin: Touvron et al. 2023, Eq. 2.
    """

    margin_scale: float = 0.0  # margin asked for = this times (score_chosen - score_rejected) of the data; 0: none

    needs = frozenset({"reward_head"})

    def __post_init__(self) -> None:
        check_scale("loss.margin_scale", self.margin_scale, "0 asks for no margin", zero=True)

    @property
    def reads_scores(self) -> bool:
        """The margin is made of the data's scores."""
        return self.margin_scale > 0

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid(r_w - r_l - margin), [P]."""
        difference = self.margin(sums, batch)
        if self.reads_scores:
            difference = difference - self.margin_scale * chosen_minus_rejected(batch.response_score, batch)
        return -F.logsigmoid(difference)
