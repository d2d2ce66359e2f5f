"""Supervised fine-tuning on the chosen responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyprefopt.errors import check
from pyprefopt.losses.method import Method, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class SFT(Method):
    """Supervised fine-tuning minimises the responses' negative log-likelihood.

    The data decides which responses (the base stage brings the chosen ones). `token` is the mean over all tokens of an
    optimizer step, as everyone trains; `sequence` the mean over responses of their summed log-likelihood.

    Source: SePO (Yang et al. 2024), Eq. 23, for `sequence`.
    """

    normalization: Literal["token", "sequence"] = "token"  # mean over tokens, or over responses of sums over tokens

    trains_on = "responses"

    def __post_init__(self) -> None:
        allowed = ("token", "sequence")
        check(self.normalization in allowed, "loss.normalization", self.normalization, "'token' or 'sequence'")

    @property
    def unit(self) -> Unit:
        """Tokens, or groups of one response each."""
        return "token" if self.normalization == "token" else "group"

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-sum of log-probs of each response, [R]; the trainer divides their sum by the step's number of units."""
        return -sums.policy[0]
