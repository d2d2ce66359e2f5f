"""Regularised losses: a second term outside the sigmoid. T-REG (Zhou et al. 2024) and DPO with an SFT term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.method import Need, chosen_minus_rejected, given_rewards
from pyprefopt.losses.simpo import SimPO

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums

SequenceWeight = Literal["gradient", "static", "none"]
_ALPHA = "usual range 0.1 to 0.5; 0 leaves the term out"


def _regularizer(policy: Tensor, weight: Tensor | float, batch: PackedBatch) -> Tensor:
    """w (R_w + R_l) for sums [R] of token reward times log-prob, R = -sum (T-REG, Eq. 1, 2): [P]."""
    return -weight * (policy[batch.pair_chosen] + policy[batch.pair_rejected])


def _check(alpha: float, sequence_weight: str) -> None:
    check_scale("loss.alpha", alpha, _ALPHA, zero=True)
    known = ("gradient", "static", "none")
    check(sequence_weight in known, "loss.sequence_weight", sequence_weight, f"one of {', '.join(known)}")


@dataclass(frozen=True)
class DPOReg(DPO):
    """DPO-REG (T-REG, Eq. 2): DPO + alpha w (R_w + R_l), R = -beta * sum of token reward times log-prob."""

    alpha: float = 0.1  # strength of the regulariser; usual 0.1 to 0.5, 0 is dpo
    sequence_weight: SequenceWeight = "gradient"  # w: DPO's gradient weight, detached; static, none: 1 (the ablation)

    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logps", "token_rewards"})
    reward_transform: ClassVar[str] = "sigmoid_centered"  # of log-ratios as token rewards, where the user says nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.alpha, self.sequence_weight)

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """1 for the margin, the token reward for the regulariser: [2, M]."""
        return torch.stack([batch.token_mask, batch.token_mask * given_rewards(batch)])

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """DPO's loss and the weighted regulariser, [P]."""
        margin = chosen_minus_rejected(self.rewards(sums, batch), batch).detach()  # without label smoothing
        weight = torch.sigmoid(-margin) if self.sequence_weight == "gradient" else 1.0
        return super().loss(sums, batch) + self.alpha * self.beta * _regularizer(sums.policy[1], weight, batch)


@dataclass(frozen=True)
class SimPOReg(SimPO):
    """SimPO-REG (T-REG, 4.1): SimPO + alpha w (R_w + R_l) with SimPO's own gradient weight w."""

    alpha: float = 0.1  # strength of the regulariser; usual 0.1 to 0.5, 0 is simpo
    sequence_weight: SequenceWeight = "gradient"  # w: SimPO's gradient weight, detached; static, none: 1 (the ablation)
    reg_length_norm: bool = True  # R divided by |y|, as SimPO's reward is; false: R is a sum, as in DPO-REG

    needs: ClassVar[frozenset[Need]] = frozenset({"token_rewards"})
    reward_transform: ClassVar[str] = "sigmoid_centered"  # of log-ratios as token rewards, where the user says nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.alpha, self.sequence_weight)

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """1 / |y| for the margin, the token reward (over |y|) for the regulariser: [2, M]."""
        mean = super().token_weights(batch, logps)[0]
        return torch.stack([mean, (mean if self.reg_length_norm else batch.token_mask) * given_rewards(batch)])

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """SimPO's loss and the weighted regulariser, [P]."""
        margin = chosen_minus_rejected(self.rewards(sums, batch), batch).detach() - self.gamma
        weight = torch.sigmoid(-margin) if self.sequence_weight == "gradient" else 1.0
        return super().loss(sums, batch) + self.alpha * self.beta * _regularizer(sums.policy[1], weight, batch)


@dataclass(frozen=True)
class DPOSFT(DPO):
    """DPO + alpha * negative log-likelihood of the chosen response (T-REG, Table 2; its text turns the sign)."""

    alpha: float = 0.01  # strength of the likelihood term, a sum over tokens; usual 0.001 to 0.1, 0 is dpo

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("loss.alpha", self.alpha, "usual range 0.001 to 0.1; 0 is dpo", zero=True)

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """DPO's loss and -alpha S_w, [P]."""
        return super().loss(sums, batch) - self.alpha * sums.policy[0, batch.pair_chosen]
