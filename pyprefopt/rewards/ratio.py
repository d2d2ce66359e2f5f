"""Rewards from the log-probs of two models: dpo, simpo, strong against weak."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from pyprefopt.errors import check, check_scale
from pyprefopt.rewards.provider import Reward, Tokens
from pyprefopt.types import unkeyed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Form = Literal["log_ratio", "length_norm"]


@dataclass(frozen=True, kw_only=True)
class DPOReward(Reward):
    """The implicit token reward of an oracle that DPO has trained from the base.

    Reward of a token: beta (log pi_oracle - log pi_base), in nats times beta.

    Source: Rafailov et al. 2024, Theorem 1.
    """

    name: str = field(default="dpo", init=False)
    beta: float = 0.1  # the beta that the oracle was trained with

    log_ratio: ClassVar[bool] = True
    usual: ClassVar[str] = "usual range 0.01 to 1"
    reads: ClassVar[tuple[str, ...]] = ("oracle", "base")

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """Compute the rewards, [T] f32; see `Reward.values`."""
        return self.beta * (columns["oracle"] - columns["base"])


@dataclass(frozen=True, kw_only=True)
class SimPOReward(Reward):
    """The token reward of an oracle that SimPO has trained from the base.

    `log_ratio`: beta (log pi_simpo - log pi_base), centred, as TGDPO's code has it; `length_norm`: beta log pi_simpo
    / |y|, a token's share in SimPO's own reward, never positive.

    Source: the public code of TGDPO (Zhu et al. 2025) for `log_ratio`; SimPO (Meng et al. 2024) for `length_norm`.
    """

    name: str = field(default="simpo", init=False)
    beta: float = 2.5  # SimPO's beta, in the oracle's training too
    gamma: float = 1.4  # target margin of the oracle's training, absolute
    form: Form = "log_ratio"  # against the base, or per length

    log_ratio: ClassVar[bool] = True
    usual: ClassVar[str] = "usual range 2 to 20"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("rewards.gamma", self.gamma, "usual range 0.3 to 3", zero=True)
        check(self.form in get_args(Form), "rewards.form", self.form, "'log_ratio' or 'length_norm'")

    @property
    def reads(self) -> tuple[str, ...]:
        """The oracle, and the base where it is compared with."""
        return ("simpo", "base") if self.form == "log_ratio" else ("simpo",)

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
        """Compute the rewards, [T] f32; see `Reward.values`."""
        if self.form == "log_ratio":
            return self.beta * (columns["simpo"] - columns["base"])
        return self.beta * columns["simpo"] / tokens.response_length.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class StrongWeak(Reward):
    """The log-ratio of any two checkpoints as a token reward.

    Reward of a token: beta (log pi_strong - log pi_weak).

    Source: T-REG (Zhou et al. 2024), section 3.3.
    """

    name: str = field(default="strong_weak", init=False)
    strong: str = unkeyed()  # checkpoint directory or hub name
    weak: str = unkeyed()  # checkpoint directory or hub name

    log_ratio: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("strong", "weak")

    @property
    def checkpoints(self) -> dict[str, str]:
        """The two checkpoints, by their settings."""
        return {"strong": self.strong, "weak": self.weak}

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """Compute the rewards, [T] f32; see `Reward.values`."""
        return self.beta * (columns["strong"] - columns["weak"])
