"""Rules about token rewards."""

from __future__ import annotations

from pyprefopt.rewards import Contrastive, Reward, SimPOReward
from pyprefopt.settings.config import OracleConfig
from pyprefopt.settings.rules.rule import Rule, needs, on_candidates, uses_rewards

REWARDS_RULES: tuple[Rule, ...] = (
    Rule(
        lambda c: c.rewards.name is not None and on_candidates(c) and not needs(c, "token_rewards"),
        "rewards {c.rewards.name} does not apply to method {c.method}, which ranks candidates by their scores; leave "
        "rewards out",
        {"method": "rrhf", "rewards": {"name": "random"}},
        "rewards",
    ),
    Rule(
        lambda c: c.rewards.name is not None and not uses_rewards(c),
        "rewards {c.rewards.name} is used only by methods that need token rewards and by selection by scores, and "
        "method {c.method} does neither here; leave rewards out, or set selection.chosen_ratio and "
        "selection.rejected_ratio (and selection.method not to random)",
        {"method": "dpo", "rewards": {"name": "random"}},
        "rewards",
    ),
    Rule(
        lambda c: (
            isinstance(c.rewards, Reward)
            and c.rewards.noise_seed != 0
            and c.rewards.noise_std == 0
            and "noise" not in c.rewards.reads
        ),
        "rewards.noise_seed needs rewards.noise_std > 0 or rewards random, got noise_std {c.rewards.noise_std}; set it "
        "or leave noise_seed out",
        {"method": "sepo", "rewards": {"name": "dpo", "noise_seed": 1}},
        "rewards.noise_seed",
    ),
    Rule(
        lambda c: (
            isinstance(c.rewards, SimPOReward) and c.rewards.gamma != SimPOReward.gamma and c.oracle.path is not None
        ),
        "rewards.gamma is a setting of the oracle's training, and oracle.path names a ready one; leave out either",
        {
            "method": "sepo",
            "rewards": {"name": "simpo", "beta": 2.5, "gamma": 1.0},
            "oracle": {"path": "oracle"},
            "base": {"path": "base"},
        },
        "rewards.gamma",
    ),
    Rule(
        lambda c: c.rewards.name == "simpo" and c.oracle.loss != OracleConfig().loss,
        "oracle.loss.* is of an oracle trained by DPO, and that of rewards simpo is trained by SimPO; use rewards.beta "
        "and rewards.gamma",
        {"method": "sepo", "rewards": {"name": "simpo"}, "oracle": {"loss": {"beta": 0.5}}},
        "oracle.loss",
    ),
    Rule(
        lambda c: isinstance(c.rewards, Contrastive) and c.rewards.max_tokens > c.max_tokens_per_batch,
        "rewards.max_tokens must be <= max_tokens_per_batch ({c.max_tokens_per_batch}), got {c.rewards.max_tokens}; "
        "lower it or raise max_tokens_per_batch",
        {"method": "sepo", "rewards": {"name": "contrastive", "max_tokens": 8192}, "max_tokens_per_batch": 4096},
        "rewards.max_tokens",
    ),
)
