"""The reward model's loss (Bradley and Terry 1952; Ouyang et al. 2022, Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from pyprefopt.errors import check_scale
from pyprefopt.losses.method import Need, TrainsOn, Unit, chosen_minus_rejected

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class BradleyTerry:
    """Reward model: one score a response, read at its last token; the chosen one must have the higher score.

    With `margin_scale` the scores must differ by a margin that the data gives (Touvron et al. 2023, Eq. 2).
    """

    margin_scale: float = 0.0  # margin asked for = this times (score_chosen - score_rejected) of the data; 0: none

    needs: ClassVar[frozenset[Need]] = frozenset({"reward_head"})
    unit: ClassVar[Unit] = "pair"
    trains_on: ClassVar[TrainsOn] = "pairs"

    def __post_init__(self) -> None:
        check_scale("loss.margin_scale", self.margin_scale, "0 asks for no margin", zero=True)

    @property
    def reads_scores(self) -> bool:
        """Whether every response must come with a score of its own."""
        return self.margin_scale > 0

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """No token is weighted: the model scores whole responses. [1, M] of ones at scored tokens."""
        return batch.token_mask[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """The model's score r(x, y), [R]."""
        return sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid(r_w - r_l - margin), [P]."""
        difference = chosen_minus_rejected(self.rewards(sums, batch), batch)
        if self.reads_scores:
            difference = difference - self.margin_scale * chosen_minus_rejected(batch.response_score, batch)
        return -F.logsigmoid(difference)
