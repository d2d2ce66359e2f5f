"""Models: loading and saving, attention over packed batches, log-probs of scored tokens."""

from __future__ import annotations

from pyprefopt.modeling.checkpoints.load import load_model, toy_config
from pyprefopt.modeling.checkpoints.save import save_policy
from pyprefopt.modeling.checkpoints.source import model_hash
from pyprefopt.modeling.cost import MemoryEstimate, estimate_memory
from pyprefopt.modeling.logps import LogpsModel, score_logps
from pyprefopt.modeling.reference import ReferencedModel
from pyprefopt.modeling.reward_head import RewardModel

__all__ = [
    "LogpsModel",
    "MemoryEstimate",
    "ReferencedModel",
    "RewardModel",
    "estimate_memory",
    "load_model",
    "model_hash",
    "save_policy",
    "score_logps",
    "toy_config",
]
