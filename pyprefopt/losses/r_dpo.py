"""DPO with a length penalty (Park et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyprefopt.errors import check_scale
from pyprefopt.losses.dpo import DPO

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class RDPO(DPO):
    """R-DPO (Park et al. 2024; TGDPO C.2): DPO for the reward r - alpha |y|, which makes length cost."""

    alpha: float = 0.01  # cost of a response token in units of reward; usual 0.001 to 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.alpha", self.alpha, "usual range 0.001 to 0.1; 0 is dpo", zero=True)

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """The preferred reward r = beta m + alpha |y|, [R]: what is left of it beside the length is learned."""
        return super().rewards(sums, batch) + self.alpha * batch.response_length
