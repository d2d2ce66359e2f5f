"""Simple preference optimization (Meng et al. 2024)."""

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
class SimPO:
    """SimPO (Meng et al. 2024, Eq. 6); `gamma` is the absolute target margin, as in TRL (some code: gamma/beta)."""

    beta: float = 2.5  # scale of the mean log-prob; usual 2 to 10
    gamma: float = 1.4  # target reward margin; usual 0.3 to 1.6 at beta 2.5

    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Unit] = "pair"
    trains_on: ClassVar[TrainsOn] = "pairs"

    def __post_init__(self) -> None:
        check_scale("loss.beta", self.beta, "usual range 2 to 10")
        check_scale("loss.gamma", self.gamma, "usual range 0.3 to 1.6 at beta 2.5", zero=True)

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """1 / |y| for each scored token: [1, M]."""
        return (batch.token_mask / batch.response_length[batch.response_index])[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """Beta times the mean log-prob, [R] (Eq. 4)."""
        return self.beta * sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the reward margin less the target margin, [P]."""
        return -F.logsigmoid(chosen_minus_rejected(self.rewards(sums, batch), batch) - self.gamma)
