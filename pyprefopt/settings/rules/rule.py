"""A rule about several settings, and what rules ask of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

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


def trains_oracle(c: RunConfig) -> bool:
    """Whether the run trains the oracle that scores its tokens."""
    return uses_oracle(c) and c.oracle.path is None


def compares_oracle(c: RunConfig) -> bool:
    """Whether the oracle's log-probs are read against those of the model that it was trained from."""
    return uses_oracle(c) and ("base" in c.rewards.asks or c.rewards.name is None)


def oracle_starts_from(c: RunConfig) -> Literal["base", "model"]:
    """What an oracle is trained from, and its log-probs are read against.

    It is the model itself, the policy's own reference, where the loss reads token rewards, or where the oracle is given
    and no base is: no base that the run trained could have been its beginning. Settings of the base ask for the base.
    """
    if c.policy_init == "base" or c.base != BaseConfig():
        return "base"
    return "model" if uses_oracle(c) and (needs(c, "token_rewards") or c.oracle.path is not None) else "base"


def on_candidates(c: RunConfig) -> bool:
    """Whether the method trains on any number of responses a prompt."""
    return METHODS[c.method].trains_on == "candidates"


def uses_base(c: RunConfig) -> bool:
    """Whether something asks for the base."""
    asked = trains_oracle(c) or compares_oracle(c) if uses_oracle(c) else "base" in c.rewards.asks
    return (asked and oracle_starts_from(c) == "base") or c.policy_init == "base" or on_responses(c)


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
