"""What a token reward is: some columns of numbers per response token, and a formula that makes one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from pyprefopt.errors import check, check_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Transform = Literal["raw", "sigmoid_centered"]
OWN_MODELS = frozenset({"base", "oracle", "simpo"})


@dataclass(frozen=True)
class Tokens:
    """All response tokens of a set lie one after another; T is their number."""

    mask: Tensor  # [T] bool, written by the assistant: what a method may weight
    response_length: Tensor  # [T] f32, tokens in the mask of the token's own response
    template: Tensor  # [T] bool, written by the chat template: the turn's end, the EOS token


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A provider of token rewards is its settings, a declaration of what it reads, and a formula.

    Its settings are its fields. The stages compute the columns that `reads` names, call `values`, and `finished` on the
    result.

    Example:
        >>> three = Tokens(torch.ones(3, dtype=torch.bool), torch.full((3,), 3.0), torch.zeros(3, dtype=torch.bool))
        >>> columns = {"oracle": torch.tensor([-1.0, -2.0, -3.0]), "base": torch.tensor([-2.0, -2.0, -2.0])}
        >>> DPOReward(beta=0.5).values(columns, three)
        tensor([ 0.5000,  0.0000, -0.5000])
    """

    name: str = field(default="", init=False)  # alias: --rewards
    beta: float = 1.0  # scale of the values; None: dpo as oracle.loss.beta, simpo 2.5, others 1
    transform: Transform = "raw"  # raw, or sigmoid(r) - 0.5; None: raw, contrastive (and T-REG) sigmoid_centered
    noise_std: float = 0.0  # standard deviation of noise added to every reward, in its own unit; 0: none
    noise_seed: int = 0  # seed of that noise, and of rewards random

    log_ratio: ClassVar[bool] = False  # a difference of log-probs, which a method may want through its own transform
    usual: ClassVar[str] = "usual 1"  # of beta

    def __post_init__(self) -> None:
        check_scale("rewards.beta", self.beta, self.usual)
        known = get_args(Transform)
        check(self.transform in known, "rewards.transform", self.transform, " or ".join(known))
        remedy = "usual 0 to 2 times the rewards' own spread"
        check_scale("rewards.noise_std", self.noise_std, remedy, zero=True)
        check(0 <= self.noise_seed < 2**32, "rewards.noise_seed", self.noise_seed, "in [0, 2^32)")

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the columns that `values` takes: log-probs of models, or values of the data."""
        raise NotImplementedError

    @property
    def asks(self) -> frozenset[str]:
        """Those of the run's own models that it reads: base, oracle, or simpo (an oracle trained by SimPO)."""
        return OWN_MODELS & frozenset(self.reads)

    @property
    def checkpoints(self) -> dict[str, str]:
        """Other models that it reads, by the setting that names them."""
        return {}

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
        """Compute the rewards before transform and noise.

        Args:
            columns: [T] f32 by the names in `reads`: log-probs in nats, or values of the data.
            tokens: which tokens these are.

        Returns:
            [T] f32.
        """
        raise NotImplementedError


def unwritten(provider: type[Reward]) -> str | None:
    """What a class must be that leaves out what a provider has; None: it has all."""
    missing = [name for name in ("reads", "values") if getattr(provider, name) is getattr(Reward, name)]
    return f"whole; define {' and '.join(missing)} in it" if missing else None


@dataclass(frozen=True)
class NoReward:
    """The provider of a run without token rewards."""

    name: None = field(default=None, init=False)

    asks: ClassVar[frozenset[str]] = frozenset()
    checkpoints: ClassVar[dict[str, str]] = {}


def transformed(values: Tensor, transform: Transform) -> Tensor:
    """Transform rewards.

    Source: T-REG (Zhou et al. 2024), Eq. 3, for `sigmoid_centered`.

    Args:
        values: float of any shape.
        transform: `raw`, or `sigmoid_centered`.

    Returns:
        The values themselves, or sigmoid(values) - 0.5, which lies in [-0.5, 0.5] and keeps the sign.

    Example:
        >>> transformed(torch.tensor([-1.0, 0.0, 1.0]), "sigmoid_centered")
        tensor([-0.2311,  0.0000,  0.2311])
    """
    return values if transform == "raw" else torch.sigmoid(values) - 0.5


def seeded_normal(count: int, seed: int, stream: int) -> Tensor:
    """Draw standard normal numbers, the same for the same seed and stream.

    Args:
        count: how many.
        seed: of the run's noise.
        stream: 0, 1, ...; each split of a run has streams of its own.

    Returns:
        [count] f32.

    Example:
        >>> seeded_normal(3, seed=0, stream=0)
        tensor([ 1.5410, -0.2934, -2.1788])
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)
    return torch.randn(count, generator=generator)


def finished(values: Tensor, tokens: Tokens, *, transform: Transform, noise_std: float, noise: Tensor | None) -> Tensor:
    """Transform rewards, and add noise to them.

    Args:
        values: [T] f32, as a provider's `values` gives them.
        tokens: which tokens these are.
        transform: see `transformed`.
        noise_std: standard deviation of the noise, in the unit of the transformed rewards.
        noise: [T] standard normal f32; None: no noise.

    Returns:
        [T] f32, 0 outside `tokens.mask`.

    Example:
        >>> finished(torch.tensor([1.0, 2.0, 3.0]), three, transform="raw", noise_std=0.0, noise=None)
        tensor([1., 2., 3.])
    """
    values = transformed(values, transform)
    if noise is not None:
        values = values + noise_std * noise
    return torch.where(tokens.mask, values, 0.0)
