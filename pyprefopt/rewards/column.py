"""Rewards that no model makes: columns of the data, and chance as a control."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pyprefopt.errors import check
from pyprefopt.rewards.provider import Reward, Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Column(Reward):
    """The data's own numbers as token rewards.

    Reward of a token: beta times its value in the columns `chosen_NAME` and `rejected_NAME`.
    """

    name: str = field(default="column", init=False)
    column: str = "rewards"  # NAME of the data's chosen_NAME and rejected_NAME

    reads: ClassVar[tuple[str, ...]] = ("column",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.column.isidentifier(), "rewards.column", self.column, "the NAME of chosen_NAME and rejected_NAME")

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """Compute the rewards, [T] f32; see `Reward.values`."""
        return self.beta * columns["column"]


@dataclass(frozen=True, kw_only=True)
class Random(Reward):
    """Noise as a token reward is the control that every provider must beat.

    Reward of a token: beta times a standard normal number, drawn by `noise_seed`.
    """

    name: str = field(default="random", init=False)

    reads: ClassVar[tuple[str, ...]] = ("noise",)

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:  # noqa: ARG002
        """Compute the rewards, [T] f32; see `Reward.values`."""
        return self.beta * columns["noise"]
