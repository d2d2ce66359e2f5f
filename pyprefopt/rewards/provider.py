"""What a token reward is: some columns of numbers per response token, and a formula that makes one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Transform = Literal["raw", "sigmoid_centered"]


@dataclass(frozen=True)
class Tokens:
    """All response tokens of a set, one after another; T of them."""

    mask: Tensor  # [T] bool, written by the assistant: what a method may weight
    response_length: Tensor  # [T] f32, tokens in the mask of the token's own response
    template: Tensor  # [T] bool, written by the chat template: the turn's end, the EOS token


class Reward(Protocol):
    """A frozen config with a declaration and a formula."""

    transform: ClassVar[Transform]  # what the values pass through where user and method say nothing
    log_ratio: ClassVar[bool]  # a difference of log-probs, which a method may want through a transform of its own

    @property
    def beta(self) -> float:
        """Scale of the values, before the transform."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the columns that `values` takes: log-probs of models, or values of the data."""

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
        """Rewards [T] before transform and noise; `columns` are [T] f32."""


def transformed(values: Tensor, transform: Transform) -> Tensor:
    """The values themselves, or sigmoid(values) - 0.5, which lies in [-0.5, 0.5] and keeps the sign (T-REG, Eq. 3)."""
    return values if transform == "raw" else torch.sigmoid(values) - 0.5


def seeded_normal(count: int, seed: int, stream: int) -> Tensor:
    """[count] standard normal f32, the same for the same seed and stream (0, 1, ...: the splits of a run)."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)
    return torch.randn(count, generator=generator)


def finished(values: Tensor, tokens: Tokens, *, transform: Transform, noise_std: float, noise: Tensor | None) -> Tensor:
    """Transform, then noise_std * noise [T] on top; 0 outside the mask."""
    values = transformed(values, transform)
    if noise is not None:
        values = values + noise_std * noise
    return torch.where(tokens.mask, values, 0.0)
