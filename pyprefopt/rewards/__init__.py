"""Token rewards: a number per response token from outside the policy; `REWARDS` is the table of all providers."""

from __future__ import annotations

from pyprefopt.rewards.column import Column, Random
from pyprefopt.rewards.contrastive import DIRECTIONS, Contrastive
from pyprefopt.rewards.provider import Reward, Tokens, Transform, finished, seeded_normal, transformed
from pyprefopt.rewards.ratio import DPOReward, SimPOReward, StrongWeak

REWARDS: dict[str, type[Reward]] = {
    "dpo": DPOReward,
    "simpo": SimPOReward,
    "contrastive": Contrastive,
    "strong_weak": StrongWeak,
    "column": Column,
    "random": Random,
}

__all__ = [
    "DIRECTIONS", "REWARDS", "Column", "Contrastive", "DPOReward", "Random", "Reward", "SimPOReward", "StrongWeak",
    "Tokens", "Transform", "finished", "seeded_normal", "transformed",
]  # fmt: skip
