"""Token rewards: a number per response token from outside the policy; `REWARDS` is the table of all providers."""

from __future__ import annotations

from pyprefopt.rewards.column import Column, Random
from pyprefopt.rewards.contrastive import DIRECTIONS, Contrastive
from pyprefopt.rewards.provider import NoReward, Reward, Tokens, Transform, finished, seeded_normal, transformed
from pyprefopt.rewards.ratio import DPOReward, SimPOReward, StrongWeak

_PROVIDERS: tuple[type[Reward], ...] = (DPOReward, SimPOReward, Contrastive, StrongWeak, Column, Random)
REWARDS: dict[str, type[Reward]] = {provider.name: provider for provider in _PROVIDERS}

__all__ = [
    "DIRECTIONS", "REWARDS", "Column", "Contrastive", "DPOReward", "NoReward", "Random", "Reward", "SimPOReward",
    "StrongWeak", "Tokens", "Transform", "finished", "seeded_normal", "transformed",
]  # fmt: skip
