"""What a run was given beside its model: ready checkpoints, and how much its token rewards count."""

from __future__ import annotations

import logging

from pyprefopt.rewards import Contrastive, Reward
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.rules import uses_oracle

logger = logging.getLogger("pyprefopt")


def of_one_vocabulary(config: RunConfig) -> set[str]:
    """Settings that name models which must read the policy's token ids: they are trained further, or read revisions."""
    trains_oracle = config.oracle.path is None and uses_oracle(config)
    settings = {"rewards.model"}
    if isinstance(config.rewards, Contrastive):
        settings.add(f"{config.rewards.model}.path")  # of the base or the oracle, by name
    return settings | ({"base.path"} if config.policy_init == "base" or trains_oracle else set())


def given_models(config: RunConfig) -> dict[str, str]:
    """Ready checkpoints beside the model, by the setting that names them."""
    given = {"base.path": config.base.path, "oracle.path": config.oracle.path}
    given |= {f"rewards.{name}": path for name, path in config.rewards.checkpoints.items()}
    return {setting: path for setting, path in given.items() if path is not None}


def say_strength(config: RunConfig) -> None:
    """Tell the one number that decides how much token rewards count, where the method multiplies them by a factor."""
    factor = config.loss.reward_factor
    if factor is None or not isinstance(config.rewards, Reward):
        return
    scale = config.rewards.beta
    if config.rewards.transform == "raw":
        logger.info(
            "policy: the token rewards count loss.alpha * rewards.beta = %g * %g = %g; only the product matters",
            factor, scale, factor * scale,
        )  # fmt: skip
    else:
        logger.info(
            "policy: the token rewards count loss.alpha = %g; rewards.beta = %g is inside the sigmoid", factor, scale
        )
