"""DPO with token-level reward guidance (Zhu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pyprefopt.errors import check_scale
from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.method import Need, given_rewards, side_signs
from pyprefopt.losses.shapes import SHAPES, check_shape, custom_shape, file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch


@dataclass(frozen=True)
class TGDPO(DPO):
    """TGDPO (Zhu et al. 2025, Eq. 20, 21): token t counts f(r_t), 1 + alpha r_t in chosen, 1 - alpha r_t in rejected.

    The token rewards r_t carry a factor of their own (`rewards.beta`); only its product with alpha matters. f is to be
    positive (Assumption 4.2): a negative weight turns a token's gradient round. The share of such weights is logged.
    """

    alpha: float = 0.5  # strength of the guidance; usual 0.2 to 2, 0 is dpo
    shape: str = "linear"  # f: linear, sigmoid (2 sigmoid of the same argument), or a function as FILE.py:NAME
    clamp: bool = False  # raise negative weights to 0

    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logps", "token_rewards"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.alpha", self.alpha, "usual range 0.2 to 2; 0 is dpo", zero=True)
        check_shape("loss.shape", self.shape)

    def __repr__(self) -> str:
        """All settings, and the content of a shape's file: what the loss depends on."""
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"TGDPO({settings}{file_digest(self.shape)})"

    @property
    def reward_factor(self) -> float | None:
        """What multiplies the token rewards: only its product with their own scale matters. None for a function."""
        return self.alpha if self.shape in SHAPES else None

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """f of the token rewards: [1, M]."""
        rewards, side = given_rewards(batch), side_signs(batch)
        if self.shape in SHAPES:
            weights = SHAPES[self.shape](self.alpha * side * rewards)
        else:
            weights = custom_shape(self.shape)(rewards, batch.response_length[batch.response_index], side)
        weights = weights.clamp(min=0) if self.clamp else weights
        return (batch.token_mask * weights)[None]
