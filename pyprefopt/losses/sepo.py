"""Selective preference optimization (Yang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.method import Need, TrainsOn, Unit, chosen_minus_rejected

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class SePO:
    """SePO (Yang et al. 2024, Eq. 26): reference-free, on the tokens that selection kept.

    The two normalizers differ where ratio * |y| is not an integer: `ratio` is the paper's 1 / (|y| k), `selected`
    the authors' code, 1 / (number selected).
    """

    reward_scale: float = 1.0  # gamma of Eq. 26, scale of the mean log-prob; the paper prints none, its code uses 1
    normalizer: Literal["ratio", "selected"] = "ratio"  # divide by |y| k (the paper), or by the number selected

    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Unit] = "pair"
    trains_on: ClassVar[TrainsOn] = "pairs"

    def __post_init__(self) -> None:
        check_scale("loss.reward_scale", self.reward_scale, "usual range 0.5 to 10")
        check(self.normalizer in ("ratio", "selected"), "loss.normalizer", self.normalizer, "'ratio' or 'selected'")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """1 / (|y| k), or 1 / (number selected), for each selected token: [1, M]."""
        by_ratio = self.normalizer == "ratio"
        count = batch.response_length * batch.selection_ratio if by_ratio else batch.scored_length
        return (batch.token_mask / count[batch.response_index])[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """`reward_scale` times the mean log-prob of the selected tokens, [R]."""
        return self.reward_scale * sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the margin of the selected tokens, [P]."""
        return -F.logsigmoid(chosen_minus_rejected(self.rewards(sums, batch), batch))
