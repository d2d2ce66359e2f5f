"""Direct preference optimization on log-ratios: DPO, IPO and R-DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.method import Method, one_over

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class DPO(Method):
    """Direct preference optimization compares log-ratios of policy and reference.

    Loss of a pair: -log sigmoid(d), d = beta (m_w - m_l), m the sum of log-ratios over the response's scored tokens;
    with label smoothing e, -(1 - e) log sigmoid(d) - e log sigmoid(-d). Reward: beta m.

    Source: Rafailov et al. 2023, Eq. 7; label smoothing as in cDPO.

    Example:
        >>> sums = Sums(policy=torch.tensor([[-10.0, -12.0]]), ref=torch.tensor([[-11.0, -11.0]]))  # [K, R], nats
        >>> DPO(beta=0.1).margin(sums, batch), DPO(beta=0.1).loss(sums, batch)  # batch: one pair; [P] each
        (tensor([0.2000]), tensor([0.5981]))
    """

    beta: float = 0.1  # strength of the pull to the reference; usual 0.01 to 0.5
    label_smoothing: float = 0.0  # share of labels taken as flipped; 0 to 0.5

    needs = frozenset({"ref_logps"})

    def __post_init__(self) -> None:
        check_scale("loss.beta", self.beta, "usual range 0.01 to 0.5")
        check(0 <= self.label_smoothing < 0.5, "loss.label_smoothing", self.label_smoothing, "in [0, 0.5)")

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Implicit reward beta * sum of log-ratios, [R] (Eq. 5 without the partition term)."""
        return self.beta * sums.log_ratio[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the reward margin beta (m_w - m_l), [P]."""
        return logistic_loss(self.margin(sums, batch), self.label_smoothing)


def logistic_loss(margin: Tensor, flipped: float) -> Tensor:
    """-log sigmoid of the margin, with a share of labels taken as flipped: [P] -> [P]."""
    return -(1 - flipped) * F.logsigmoid(margin) - flipped * F.logsigmoid(-margin)


@dataclass(frozen=True)
class IPO(Method):
    """IPO moves the difference of log-ratios to a fixed distance.

    Loss of a pair: (m_w / |y_w| - m_l / |y_l| - 1 / (2 beta))^2, m the sum of log-ratios over the response's scored
    tokens; without `length_normalized`, of m_w - m_l. Means are what the authors confirmed, sums what several codes
    take. Reward: m / |y|, or m, in nats.

    Source: Azar et al. 2024, Eq. 17.
    """

    beta: float = 0.1  # tau of the paper: the log-ratios are to differ by 1 / (2 beta); usual 0.01 to 1
    length_normalized: bool = True  # compare mean log-ratios of a token; false: sums over the response

    needs = frozenset({"ref_logps"})

    def __post_init__(self) -> None:
        check_scale("loss.beta", self.beta, "usual range 0.01 to 1")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 / |y|, or 1, for each scored token: [1, M]."""
        return (one_over(batch.response_length, batch) if self.length_normalized else batch.token_mask)[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Mean (or sum) of the log-ratios, [R], in nats."""
        return sums.log_ratio[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Squared distance of the margin from 1 / (2 beta), [P]."""
        return (self.margin(sums, batch) - 1 / (2 * self.beta)).square()


@dataclass(frozen=True)
class RDPO(DPO):
    """R-DPO is DPO for the reward r - alpha |y|, in which length has a cost.

    Loss of a pair: -log sigmoid(beta (m_w - m_l) + alpha (|y_w| - |y_l|)); label smoothing as in DPO.

    Source: Park et al. 2024; TGDPO, C.2.
    """

    alpha: float = 0.01  # cost of a response token in units of reward; usual 0.001 to 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.alpha", self.alpha, "usual range 0.001 to 0.1; 0 is dpo", zero=True)

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """The preferred reward r = beta m + alpha |y|, [R]: what is left of it beside the length is learned."""
        return super().rewards(sums, batch) + self.alpha * batch.response_length
