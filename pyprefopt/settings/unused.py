"""Settings of a file that the run does not use: one file serves several methods."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from pyprefopt.data.batching.rule import Selection
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import dotted
from pyprefopt.settings.config import BaseConfig, OracleConfig, RunConfig
from pyprefopt.settings.rules.rule import needs, on_candidates, on_responses, uses_base, uses_oracle

SHOWN = 6  # names in the line about them

logger = logging.getLogger("pyprefopt")


def unused(config: RunConfig, file: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The settings of `file` below selection, oracle and base that the run of all settings, `config`, does not use.

    What is `given` beside the file is used or refused, so it decides: a checkpoint that is given is not trained.
    """
    found: list[str] = []
    if on_responses(config) or on_candidates(config) or needs(config, "reward_head"):
        found += _names("selection", file)
        config = replace(config, selection=Selection())
    elif not config.selection.active:  # no ratio and no threshold: what else there is decides nothing
        found += _names("selection", file)
    if not uses_oracle(config):
        found += _names("oracle", file)
        config = replace(config, oracle=OracleConfig())
    elif "path" in _section(given, "oracle"):
        found += [name for name in _names("oracle", file) if name != "oracle.path"]
    if on_responses(config):
        found += [name for name in _names("base", file) if name != "base.data"]
    elif not uses_base(config):
        found += _names("base", file)
    elif "path" in _section(given, "base"):
        found += [name for name in _names("base", file) if name != "base.path"]
    return found


def without(settings: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The settings but for those of the dotted names."""
    kept = {}
    for name, value in settings.items():
        inner = [full.partition(".")[2] for full in names if full.startswith(f"{name}.")]
        if name not in names:
            kept[name] = without(value, inner) if inner and isinstance(value, Mapping) else value
    return kept


def log_unused(names: list[str], config: RunConfig, where: str) -> None:
    """Say in one line which settings of the file are left aside; those that are as they would be without it are not."""
    told = [name for name in names if not _is_default(name, config)]
    if told and is_main():
        shown = ", ".join(told[:SHOWN]) + (f" and {len(told) - SHOWN} more" if len(told) > SHOWN else "")
        logger.warning("%s: left aside, because method %s does not use it here: %s", where, config.method, shown)


def _names(section: str, file: Mapping[str, Any]) -> list[str]:
    return list(dotted({section: _section(file, section)}))


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return vars(section) if is_dataclass(section) else section if isinstance(section, Mapping) else {}


def _is_default(name: str, config: RunConfig) -> bool:
    """Whether the config has what a run without that setting would have."""
    section, _, rest = name.partition(".")
    value: Any = getattr(config, section)
    default: Any = {"selection": Selection, "oracle": OracleConfig, "base": BaseConfig}[section]()
    for part in rest.split("."):
        value, default = getattr(value, part), getattr(default, part)
    return bool(value == default)
