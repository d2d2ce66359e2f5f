"""Supervised fine-tuning on the chosen responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pyprefopt.errors import check
from pyprefopt.losses.method import Need, TrainsOn, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class SFT:
    """Negative log-likelihood of the responses; the data decides which (the base stage brings the chosen ones).

    `token` is the mean over all tokens of an optimizer step, as everyone trains; `sequence` the mean over responses of
    their summed log-likelihood (SePO, Eq. 23).
    """

    normalization: Literal["token", "sequence"] = "token"  # mean over tokens, or over responses of sums over tokens

    needs: ClassVar[frozenset[Need]] = frozenset()
    trains_on: ClassVar[TrainsOn] = "responses"

    def __post_init__(self) -> None:
        allowed = ("token", "sequence")
        check(self.normalization in allowed, "loss.normalization", self.normalization, "'token' or 'sequence'")

    @property
    def unit(self) -> Unit:
        """Tokens, or groups of one response each."""
        return "token" if self.normalization == "token" else "group"

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """Every scored token counts once: [1, M]."""
        return batch.token_mask[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """Log-likelihood of each response, [R]."""
        return sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """-sum of log-probs of each response, [R]; the trainer divides their sum by the step's number of units."""
        return -sums.policy[0]
