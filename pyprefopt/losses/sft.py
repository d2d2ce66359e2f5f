"""Supervised fine-tuning on the chosen responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pyprefopt.errors import check
from pyprefopt.losses.method import Need, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class SFT:
    """Negative log-likelihood of every response in the batch, averaged over all tokens of the optimizer step.

    The data decides what is in the batch: the base stage brings chosen responses only. (SePO's Eq. 23 averages
    sums over responses instead; that normalization is not offered yet.)
    """

    normalization: Literal["token"] = "token"  # the loss is a mean over all tokens of the optimizer step

    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Unit] = "token"

    def __post_init__(self) -> None:
        check(self.normalization == "token", "loss.normalization", self.normalization, "'token'")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """Every scored token counts once: [1, M]."""
        return batch.token_mask[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """Log-likelihood of each response, [R]."""
        return sums.policy[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """-sum of log-probs, [R]; divided by the step's number of tokens."""
        return -sums.policy[0]
