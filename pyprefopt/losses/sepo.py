"""Selective preference optimization (Yang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.method import Method, one_over

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class SePO(Method):
    """SePO compares mean log-probs of the tokens that selection kept, without a reference.

    Loss of a pair: -log sigmoid(u_w - u_l), u = gamma / (|y| k) times the sum of the selected tokens' log-probs. The
    two normalizers differ where k |y| is not an integer: `ratio` is the paper's 1 / (|y| k), `selected` the authors'
    code, 1 / (number selected).

    Source: Yang et al. 2024, Eq. 26.
    """

    reward_scale: float = 1.0  # gamma of Eq. 26, scale of the mean log-prob; the paper prints none, its code uses 1
    normalizer: Literal["ratio", "selected"] = "ratio"  # divide by |y| k (the paper), or by the number selected

    def __post_init__(self) -> None:
        check_scale("loss.reward_scale", self.reward_scale, "usual range 0.5 to 10")
        check(self.normalizer in ("ratio", "selected"), "loss.normalizer", self.normalizer, "'ratio' or 'selected'")

    @property
    def divides_by_ratio(self) -> bool:
        """The paper's normalizer does."""
        return self.normalizer == "ratio"

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 / (|y| k), or 1 / (number selected), for each selected token: [1, M]."""
        by_ratio = self.normalizer == "ratio"
        return one_over(batch.response_length * batch.selection_ratio if by_ratio else batch.scored_length, batch)[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """`reward_scale` times the mean log-prob of the selected tokens, [R]."""
        return self.reward_scale * sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the margin of the selected tokens, [P]."""
        return -F.logsigmoid(self.margin(sums, batch))
