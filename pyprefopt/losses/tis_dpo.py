"""DPO with token-level importance sampling (Liu et al. 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.method import Need, given_rewards, side_signs

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch


@dataclass(frozen=True)
class TISDPO(DPO):
    """TIS-DPO (Liu et al. 2025): token t counts k exp(+-mu r_t), r_t the log-ratio of two contrasting models, clipped.

    The exponent is positive in chosen and negative in rejected responses. Weights are estimated before training
    (`rewards strong_weak`, or `contrastive`).
    """

    weight_scale: float = 1.0  # k: factor of all weights; usual 1
    weight_rate: float = 1.0  # mu: how fast the weight grows with the log-ratio; usual 0.5 to 2, 0 is dpo with beta k
    lower: float = -0.5  # log-ratios below are raised to it, nats
    upper: float = 1.5  # log-ratios above are lowered to it, nats

    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logps", "token_rewards"})
    reward_transform: ClassVar[str] = "raw"  # the log-ratio itself, of contrastive prompts too

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.weight_scale", self.weight_scale, "usual 1")
        check_scale("loss.weight_rate", self.weight_rate, "usual range 0.5 to 2", zero=True)
        check(math.isfinite(self.lower), "loss.lower", self.lower, "a finite number of nats", "usual -0.5")
        check(math.isfinite(self.upper), "loss.upper", self.upper, "a finite number of nats", "usual 1.5")
        check(self.lower <= self.upper, "loss.lower", self.lower, f"<= loss.upper ({self.upper})")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """k exp(+-mu clip(r)): [1, M]."""
        clipped = given_rewards(batch).clamp(self.lower, self.upper)
        weights = self.weight_scale * (self.weight_rate * side_signs(batch) * clipped).exp()
        return (batch.token_mask * weights)[None]
