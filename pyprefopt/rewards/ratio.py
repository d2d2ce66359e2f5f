"""Rewards from the log-probs of two models: dpo, simpo, strong against weak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pyprefopt.errors import check, check_scale
from pyprefopt.rewards.provider import Tokens, Transform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class DPOReward:
    """beta (log pi_oracle - log pi_base), of an oracle trained by DPO (Rafailov et al. 2024, Theorem 1)."""

    beta: float = 0.1  # the beta that the oracle was trained with

    transform: ClassVar[Transform] = "raw"
    log_ratio: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("oracle", "base")

    def __post_init__(self) -> None:
        check_scale("rewards.beta", self.beta, "usual range 0.01 to 1")

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """[T]."""
        return self.beta * (columns["oracle"] - columns["base"])


@dataclass(frozen=True)
class SimPOReward:
    """Of an oracle trained by SimPO from the base.

    `log_ratio`: beta (log pi_simpo - log pi_base), centred, as TGDPO's code has it; `length_norm`: beta log pi_simpo
    / |y|, a token's share in SimPO's own reward, never positive.
    """

    beta: float = 2.5  # SimPO's beta, in the oracle's training too
    gamma: float = 1.4  # target margin of the oracle's training, absolute
    form: Literal["log_ratio", "length_norm"] = "log_ratio"

    transform: ClassVar[Transform] = "raw"
    log_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_scale("rewards.beta", self.beta, "usual range 2 to 20")
        check_scale("rewards.gamma", self.gamma, "usual range 0.3 to 3", zero=True)
        check(self.form in ("log_ratio", "length_norm"), "rewards.form", self.form, "'log_ratio' or 'length_norm'")

    @property
    def reads(self) -> tuple[str, ...]:
        """The base only where it is compared with."""
        return ("simpo", "base") if self.form == "log_ratio" else ("simpo",)

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
        """[T]."""
        if self.form == "log_ratio":
            return self.beta * (columns["simpo"] - columns["base"])
        return self.beta * columns["simpo"] / tokens.response_length.clamp(min=1)


@dataclass(frozen=True)
class StrongWeak:
    """beta (log pi_strong - log pi_weak) of any two checkpoints (T-REG, section 3.3)."""

    strong: str  # checkpoint: directory or hub name
    weak: str  # checkpoint: directory or hub name
    beta: float = 1.0  # scale of the log-ratio

    transform: ClassVar[Transform] = "raw"
    log_ratio: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("strong", "weak")

    def __post_init__(self) -> None:
        check_scale("rewards.beta", self.beta, "usual 1")

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """[T]."""
        return self.beta * (columns["strong"] - columns["weak"])
