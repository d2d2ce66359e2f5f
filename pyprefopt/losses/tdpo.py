"""Token-level DPO (Zeng et al. 2024): DPO with the sequential KL divergence of both responses inside the sigmoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyprefopt.errors import check_scale
from pyprefopt.losses.dpo import DPO, logistic_loss

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums

# K of a response is the sum over its scored positions of KL(reference || policy) over the whole vocabulary.


@dataclass(frozen=True)
class TDPO1(DPO):
    """TDPO1 is DPO with the difference of the responses' divergences in the margin.

    Margin: beta (m_w - m_l) - beta kl_scale (K_l - K_w), nothing detached; K, in nats, is the sum over the response's
    scored positions of KL(reference || policy) over the whole vocabulary.

    Source: Zeng et al. 2024; TGDPO, Table 7.
    """

    kl_scale: float = 1.0  # factor of the difference of the divergences; 1 is the paper's, 0 is dpo

    needs = frozenset({"ref_logps", "ref_kl"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.kl_scale", self.kl_scale, "usual 1; 0 is dpo", zero=True)

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """beta (m + kl_scale K), [R]: the margin's part of each response."""
        return super().rewards(sums, batch) + self.beta * self.kl_scale * sums.divergence


@dataclass(frozen=True)
class TDPO2(DPO):
    """TDPO2 is TDPO1 without a gradient through the chosen response's divergence.

    Margin: beta (m_w - m_l) - beta alpha (K_l - sg K_w), with K as in TDPO1 and sg a stopped gradient.

    Source: Zeng et al. 2024.
    """

    alpha: float = 0.5  # factor of the difference of the divergences; usual 0.01 to 0.7, 0 is dpo

    needs = frozenset({"ref_logps", "ref_kl"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.alpha", self.alpha, "usual range 0.01 to 0.7; 0 is dpo", zero=True)

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """beta (m + alpha K), [R]: the margin's part of each response."""
        return super().rewards(sums, batch) + self.beta * self.alpha * sums.divergence

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the margin, in which the chosen response's divergence is a constant, [P]."""
        m = super().rewards(sums, batch)
        chosen = m + self.beta * self.alpha * sums.divergence.detach()
        rejected = m + self.beta * self.alpha * sums.divergence
        margin = chosen[batch.pair_chosen] - rejected[batch.pair_rejected]
        return logistic_loss(margin, self.label_smoothing)
