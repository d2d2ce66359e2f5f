"""Regularised losses: a second term outside the sigmoid. T-REG (Zhou et al. 2024) and DPO with an SFT term."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from pyprefopt.errors import check, check_number, check_scale
from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.simpo import SimPO

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums

SequenceWeight = Literal["gradient", "static", "none"]


Alpha = float | Literal["inf"]


def _check(method: DPOReg | SimPOReg) -> None:
    if method.alpha == math.inf:  # one spelling, as YAML and keys have it
        object.__setattr__(method, "alpha", "inf")
    if method.alpha != "inf":
        remedy = "usual range 0.1 to 0.5; 0 leaves the term out, inf leaves all else out"
        check_number("loss.alpha", method.alpha, remedy=remedy)
        check(method.alpha >= 0, "loss.alpha", method.alpha, ">= 0, or inf", remedy)
    weight, known = method.sequence_weight, ("gradient", "static", "none")
    check(weight in known, "loss.sequence_weight", weight, f"one of {', '.join(known)}")


def _regularised(loss: Tensor, method: DPOReg | SimPOReg, margin: Tensor, sums: Sums, batch: PackedBatch) -> Tensor:
    """The loss plus alpha w (R_w + R_l), R = -beta * the second sum (T-REG, Eq. 1, 2), w = sigmoid(-margin), [P].

    No gradient flows through w. With alpha inf the regulariser w (R_w + R_l) stands alone.
    """
    weight = torch.sigmoid(-margin.detach()) if method.sequence_weight == "gradient" else 1.0
    second = sums.policy[1]
    regulariser = method.beta * (-weight * (second[batch.pair_chosen] + second[batch.pair_rejected]))
    return regulariser if method.alpha == "inf" else loss + method.alpha * regulariser


@dataclass(frozen=True)
class DPOReg(DPO):
    """DPO-REG adds a regulariser of token rewards to DPO.

    Loss of a pair: DPO's + alpha w (R_w + R_l), R = -beta times the sum of token reward times log-prob over the
    response, w = sigmoid(-margin) without gradient, or 1 (`sequence_weight`).

    Source: T-REG (Zhou et al. 2024), Eq. 2.
    """

    alpha: Alpha = 0.1  # strength of the regulariser; usual 0.1 to 0.5, 0 is dpo, inf the regulariser alone
    sequence_weight: SequenceWeight = "gradient"  # w: DPO's gradient weight, detached; static, none: 1 (the ablation)

    needs = frozenset({"ref_logps", "token_rewards"})
    reward_transform = "sigmoid_centered"  # of log-ratios as token rewards, where the user sets none

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 for the margin, the token reward for the regulariser: [2, M]."""
        return torch.stack([batch.token_mask, batch.token_mask * self.token_rewards(batch)])

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """DPO's loss and the weighted regulariser, [P]."""
        margin = self.margin(sums, batch)  # w is without label smoothing
        return _regularised(super().loss(sums, batch), self, margin, sums, batch)


@dataclass(frozen=True)
class SimPOReg(SimPO):
    """SimPO-REG adds the regulariser of DPO-REG to SimPO.

    Loss of a pair: SimPO's + alpha w (R_w + R_l), w = sigmoid(-(margin - gamma)) without gradient, or 1.

    Source: T-REG (Zhou et al. 2024), 4.1.
    """

    alpha: Alpha = 0.1  # strength of the regulariser; usual 0.1 to 0.5, 0 is simpo, inf the regulariser alone
    sequence_weight: SequenceWeight = "gradient"  # w: SimPO's gradient weight, detached; static, none: 1 (the ablation)
    reg_length_norm: bool = True  # R divided by |y|, as SimPO's reward is; false: R is a sum, as in DPO-REG

    needs = frozenset({"token_rewards"})
    reward_transform = "sigmoid_centered"  # of log-ratios as token rewards, where the user sets none

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 / |y| for the margin, the token reward (over |y|) for the regulariser: [2, M]."""
        mean = super().token_weights(batch, logps)[0]
        return torch.stack([mean, (mean if self.reg_length_norm else batch.token_mask) * self.token_rewards(batch)])

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """SimPO's loss and the weighted regulariser, [P]."""
        margin = self.margin(sums, batch) - self.gamma
        return _regularised(super().loss(sums, batch), self, margin, sums, batch)


@dataclass(frozen=True)
class DPOSFT(DPO):
    """DPO-SFT adds the chosen response's negative log-likelihood to DPO.

    Loss of a pair: DPO's - alpha S_w, S_w the sum of log-probs over the chosen response's scored tokens.

    Source: T-REG (Zhou et al. 2024), Table 2; its text prints the opposite sign.
    """

    alpha: float = 0.01  # strength of the likelihood term, a sum over tokens; usual 0.001 to 0.1, 0 is dpo

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.alpha", self.alpha, "usual range 0.001 to 0.1; 0 is dpo", zero=True)

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """DPO's loss and -alpha S_w, [P]."""
        return super().loss(sums, batch) - self.alpha * sums.policy[0, batch.pair_chosen]
