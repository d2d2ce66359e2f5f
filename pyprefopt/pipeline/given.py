"""What a run was given beside its model: ready checkpoints, and how much its token rewards count."""

from __future__ import annotations

import logging

from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.rules import uses_oracle

logger = logging.getLogger("pyprefopt")


def of_one_vocabulary(config: RunConfig) -> set[str]:
    """Settings that name models which must read the policy's token ids: they are trained further, or read revisions."""
    trains_oracle = config.oracle.path is None and uses_oracle(config)
    settings = {"rewards.model", f"{config.rewards.model}.path"}  # the latter: base or oracle, by name
    return settings | ({"base.path"} if config.policy_init == "base" or trains_oracle else set())


def given_models(config: RunConfig) -> dict[str, str]:
    """Ready checkpoints beside the model, by the setting that names them."""
    rewards = config.rewards
    asked = rewards.model if rewards.model not in ("reference", "base", "oracle") else None
    given = {
        "base.path": config.base.path, "oracle.path": config.oracle.path, "rewards.strong": rewards.strong,
        "rewards.weak": rewards.weak, "rewards.model": asked,
    }  # fmt: skip
    return {setting: path for setting, path in given.items() if path is not None}


def say_strength(config: RunConfig) -> None:
    """Tell the one number that decides how much token rewards count, where the method multiplies them by a factor."""
    factor = config.loss.reward_factor
    if factor is None:
        return
    scale = config.rewards.provider().beta
    if config.rewards.transform == "raw":
        logger.info(
            "policy: the token rewards count loss.alpha * rewards.beta = %g * %g = %g; only the product matters",
            factor, scale, factor * scale,
        )  # fmt: skip
    else:
        logger.info(
            "policy: the token rewards count loss.alpha = %g; rewards.beta = %g is inside the sigmoid", factor, scale
        )
