"""Rules about several settings at once, as declared tables. `resolve` applies them; a test walks every row."""

from __future__ import annotations

from pyprefopt.errors import ConfigError
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.rules.data import DATA_RULES
from pyprefopt.settings.rules.rewards import REWARDS_RULES
from pyprefopt.settings.rules.rule import Rule, compares_oracle, oracle_starts_from, trains_oracle, uses_base
from pyprefopt.settings.rules.running import RUNNING_RULES
from pyprefopt.settings.rules.selection import SELECTION_RULES
from pyprefopt.settings.rules.stages import STAGES_RULES

__all__ = ["RULES", "check_compatible", "compares_oracle", "oracle_starts_from", "trains_oracle", "uses_base"]

RULES: tuple[Rule, ...] = (*SELECTION_RULES, *REWARDS_RULES, *STAGES_RULES, *DATA_RULES, *RUNNING_RULES)


def check_compatible(config: RunConfig) -> None:
    """Raise a ConfigError for the first row of RULES that the config breaks."""
    for rule in RULES:
        if rule.breaks(config):
            raise ConfigError(rule.message.format(c=config))
