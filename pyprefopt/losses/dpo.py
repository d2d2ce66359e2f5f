"""Direct preference optimization (Rafailov et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.method import Need, TrainsOn, Unit, chosen_minus_rejected

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class DPO:
    """Direct preference optimization (Rafailov et al. 2023, Eq. 7); label smoothing as in cDPO."""

    beta: float = 0.1  # strength of the pull to the reference; usual 0.01 to 0.5
    label_smoothing: float = 0.0  # share of labels taken as flipped; 0 to 0.5

    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logps"})
    unit: ClassVar[Unit] = "pair"
    trains_on: ClassVar[TrainsOn] = "pairs"

    def __post_init__(self) -> None:
        check_scale("loss.beta", self.beta, "usual range 0.01 to 0.5")
        check(0 <= self.label_smoothing < 0.5, "loss.label_smoothing", self.label_smoothing, "in [0, 0.5)")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """Every scored token counts once: [1, M]."""
        return batch.token_mask[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """Implicit reward beta * sum of log-ratios, [R] (Eq. 5 without the partition term)."""
        assert sums.ref is not None  # noqa: S101  (declared in `needs`)
        return self.beta * (sums.policy - sums.ref)[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the reward margin, [P]."""
        margin = chosen_minus_rejected(self.rewards(sums, batch), batch)  # beta (m_w - m_l)
        return logistic_loss(margin, self.label_smoothing)


def logistic_loss(margin: Tensor, flipped: float) -> Tensor:
    """-log sigmoid of the margin, with a share of labels taken as flipped: [P] -> [P]."""
    return -(1 - flipped) * F.logsigmoid(margin) - flipped * F.logsigmoid(-margin)
