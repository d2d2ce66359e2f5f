"""A rule about several settings, and what rules ask of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pyprefopt.data.batching.rule import Selection
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import (
    BaseConfig,
    OracleConfig,
    RunConfig,
)
from pyprefopt.storage.hub import is_bare


@dataclass(frozen=True)
class Rule:
    """One row: what breaks it, the text of its error, and an example that breaks it only through `culprit`."""

    breaks: Callable[[RunConfig], bool]
    message: str  # setting, rule and remedy; `{c}` is the config
    example: dict[str, Any]  # settings as for `resolve.configure`
    culprit: str  # the dotted setting of the example without which it is fine


def needs(c: RunConfig, need: str) -> bool:
    """Whether the method declares this need."""
    return need in METHODS[c.method].needs


def on_responses(c: RunConfig) -> bool:
    """Whether the method trains on responses alone, as SFT does."""
    return METHODS[c.method].trains_on == "responses"


def uses_oracle(c: RunConfig) -> bool:
    """Whether an oracle scores tokens: for the token rewards, or, without these, for the selection."""
    return bool(c.rewards.asks & {"oracle", "simpo"}) or (c.rewards.name is None and c.selection.needs_scores)


def on_candidates(c: RunConfig) -> bool:
    """Whether the method trains on any number of responses a prompt."""
    return METHODS[c.method].trains_on == "candidates"


def uses_base(c: RunConfig) -> bool:
    """Whether something asks for the base."""
    return "base" in c.rewards.asks or uses_oracle(c) or c.policy_init == "base" or on_responses(c)


def starts_from_weights(c: RunConfig) -> bool:
    """Whether the first training starts from a checkpoint, and not from a configuration alone."""
    first = c.base.path if c.policy_init == "base" and c.base.path is not None else c.model
    return first is not None and not is_bare(first)


def uses_rewards(c: RunConfig) -> bool:
    """Whether the method or the selection reads token rewards."""
    return "token_rewards" in METHODS[c.method].needs or (c.selection.needs_scores and not on_responses(c))


def only_path(section: BaseConfig | OracleConfig) -> bool:
    """Whether the path is the only setting that is given."""
    return replace(section, path=None) == type(section)()


def not_share_k(selection: Selection) -> bool:
    """Whether other numbers of tokens are selected than k of a response, beyond rounding."""
    return selection.minimum > 1 or bool(selection.excluded_ids)
