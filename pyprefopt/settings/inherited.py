"""What base and oracle take over of the optimisation that the user gave for the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pyprefopt.settings.config import OptimConfig, RunConfig
from pyprefopt.settings.rules.rule import on_responses, uses_base, uses_oracle

OF_ONE_LOSS = ("until_converged", "convergence_window")  # a loss that is small for one method is not for another
LENGTH = ("num_train_epochs", "max_steps")  # of a training: one choice
SHARED = tuple(f.name for f in fields(OptimConfig) if f.name not in OF_ONE_LOSS)


def with_inherited(config: RunConfig, user: Mapping[str, Any]) -> RunConfig:
    """The run whose base and oracle, where it trains them, are trained as `user` says for the policy.

    What the user gave below `base.` or `oracle.` stays; what recipes have there gives way.
    """
    given = {name: getattr(config, name) for name in SHARED if user.get(name) is not None}
    if user.get("until_converged") is not None:  # the length is then a bound, of this training
        given = {name: value for name, value in given.items() if name not in LENGTH}
    for section, trains in (
        ("base", uses_base(config) and not on_responses(config)),
        ("oracle", uses_oracle(config)),
    ):
        own, part = user.get(section) or {}, getattr(config, section)
        if not trains or part.path is not None or not isinstance(own, Mapping):
            continue
        taken = {name: value for name, value in given.items() if name not in own}
        if set(LENGTH) & set(given) and not set(LENGTH) & set(own):
            taken["max_steps"] = given.get("max_steps", -1)
        else:
            taken = {name: value for name, value in taken.items() if name not in LENGTH}
        config = replace(config, **{section: replace(part, **taken)})
    return config
