"""Token rewards: a number per response token from outside the policy; `REWARDS` is the table of all providers."""

from __future__ import annotations

from pyprefopt.errors import ConfigError
from pyprefopt.rewards.column import Column, Random
from pyprefopt.rewards.contrastive import DIRECTIONS, Contrastive
from pyprefopt.rewards.provider import (
    NoReward,
    Reward,
    Tokens,
    Transform,
    finished,
    seeded_normal,
    transformed,
    unwritten,
)
from pyprefopt.rewards.ratio import DPOReward, SimPOReward, StrongWeak
from pyprefopt.storage.user_code import Table

_PROVIDERS: tuple[type[Reward], ...] = (DPOReward, SimPOReward, Contrastive, StrongWeak, Column, Random)
REWARDS: Table[Reward] = Table(
    {provider.name: provider for provider in _PROVIDERS}, base=Reward, setting="rewards", check=unwritten
)


def load_provider(path: str) -> type[Reward]:
    """The provider that FILE.py:NAME names, which settings call so."""
    cls = REWARDS.load(path)
    cls.name = path
    return cls


def check_reads(provider: Reward) -> None:
    """ConfigError where a provider of the user's reads what no stage makes for it."""
    if REWARDS.file(type(provider)) is None:
        return
    makers = {"simpo": SimPOReward, "column": Column, "better": Contrastive, "worse": Contrastive}
    for name in provider.reads:
        maker = makers.get(name)
        if maker is not None and not isinstance(provider, maker):
            raise ConfigError(
                f"{provider.name} reads '{name}', which is made for {maker.__name__}; derive it from that"
            )
        if maker is None and name not in {"base", "oracle", "noise", *provider.checkpoints}:
            raise ConfigError(
                f"{provider.name} reads '{name}', which nothing makes; reads may have base, oracle, noise, and names "
                "that checkpoints give a model's path"
            )


__all__ = [
    "DIRECTIONS", "REWARDS", "Column", "Contrastive", "DPOReward", "NoReward", "Random", "Reward", "SimPOReward",
    "StrongWeak", "Tokens", "Transform", "check_reads", "finished", "load_provider", "seeded_normal", "transformed",
]  # fmt: skip
