"""Rewards that no model makes: columns of the data, and chance as a control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pyprefopt.errors import check, check_scale
from pyprefopt.rewards.provider import Tokens, Transform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Column:
    """beta times what the data says of each token, in `chosen_NAME` and `rejected_NAME`."""

    column: str = "rewards"  # NAME; chosen_rewards and rejected_rewards
    beta: float = 1.0  # scale of the values

    transform: ClassVar[Transform] = "raw"
    log_ratio: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("column",)

    def __post_init__(self) -> None:
        check_scale("rewards.beta", self.beta, "usual 1")
        check(self.column.isidentifier(), "rewards.column", self.column, "the NAME of chosen_NAME and rejected_NAME")

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """[T]."""
        return self.beta * columns["column"]


@dataclass(frozen=True)
class Random:
    """beta times seeded standard normal noise: the control that every provider must beat."""

    beta: float = 1.0  # standard deviation

    transform: ClassVar[Transform] = "raw"
    log_ratio: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("noise",)

    def __post_init__(self) -> None:
        check_scale("rewards.beta", self.beta, "usual 1")

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """[T]."""
        return self.beta * columns["noise"]
