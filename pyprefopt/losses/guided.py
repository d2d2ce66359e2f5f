"""DPO whose tokens are weighted by token rewards: TGDPO and TIS-DPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.method import side_signs
from pyprefopt.losses.shapes import SHAPES, check_shape, custom_shape, shape_content

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch


@dataclass(frozen=True)
class TGDPO(DPO):
    """TGDPO is DPO in which token t counts f(r_t) of its token reward r_t.

    f is 1 + alpha r_t in chosen and 1 - alpha r_t in rejected responses (`shape` linear). The token rewards carry a
    factor of their own (`rewards.beta`); only its product with alpha matters. f is to be positive (Assumption 4.2): a
    negative weight turns a token's gradient round. The share of such weights is logged.

    Source: Zhu et al. 2025, Eq. 20, 21.
    """

    alpha: float = 0.5  # strength of the guidance; usual 0.2 to 2, 0 is dpo
    shape: str = "linear"  # f: linear, sigmoid (2 sigmoid of the same argument), or a function as FILE.py:NAME
    clamp: bool = False  # raise negative weights to 0

    needs = frozenset({"ref_logps", "token_rewards"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.alpha", self.alpha, "usual range 0.2 to 2; 0 is dpo", zero=True)
        check_shape("loss.shape", self.shape)

    @property
    def content(self) -> dict[str, str]:
        """A shape of one's own by the content of its file, so that a changed function is another method."""
        return {"shape": shape_content(self.shape)}

    @property
    def reward_factor(self) -> float | None:
        """Only its product with the token rewards' own scale matters; a function has none."""
        return self.alpha if self.shape in SHAPES else None

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """f of the token rewards: [1, M]."""
        rewards, side = self.token_rewards(batch), side_signs(batch)
        if self.shape in SHAPES:
            weights = SHAPES[self.shape](self.alpha * side * rewards)
        else:
            weights = custom_shape(self.shape)(rewards, batch.response_length[batch.response_index], side)
        weights = weights.clamp(min=0) if self.clamp else weights
        return (batch.token_mask * weights)[None]


@dataclass(frozen=True)
class TISDPO(DPO):
    """TIS-DPO is DPO in which token t counts k exp(+-mu r_t).

    r_t is the log-ratio of two contrasting models in nats, clipped to [`lower`, `upper`]. The exponent is positive in
    chosen and negative in rejected responses. Weights are estimated before training (`rewards strong_weak`, or
    `contrastive`).

    Source: Liu et al. 2025.
    """

    weight_scale: float = 1.0  # k: factor of all weights; usual 1
    weight_rate: float = 1.0  # mu: how fast the weight grows with the log-ratio; usual 0.5 to 2, 0 is dpo with beta k
    lower: float = -0.5  # log-ratios below are raised to it, nats
    upper: float = 1.5  # log-ratios above are lowered to it, nats

    needs = frozenset({"ref_logps", "token_rewards"})
    reward_transform = "raw"  # the log-ratio itself, of contrastive prompts too

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.weight_scale", self.weight_scale, "usual 1")
        check_scale("loss.weight_rate", self.weight_rate, "usual range 0.5 to 2", zero=True)
        check(math.isfinite(self.lower), "loss.lower", self.lower, "a finite number of nats", "usual -0.5")
        check(math.isfinite(self.upper), "loss.upper", self.upper, "a finite number of nats", "usual 1.5")
        check(self.lower <= self.upper, "loss.lower", self.lower, f"<= loss.upper ({self.upper})")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """k exp(+-mu clip(r)): [1, M]."""
        clipped = self.token_rewards(batch).clamp(self.lower, self.upper)
        weights = self.weight_scale * (self.weight_rate * side_signs(batch) * clipped).exp()
        return (batch.token_mask * weights)[None]
