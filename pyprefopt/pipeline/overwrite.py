"""What a run must not destroy unasked: the finished policy of other settings, and files that no run made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.settings.command_line import dotted
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.in_memory import INPUTS
from pyprefopt.settings.typed import as_dict, read_yaml
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.folders import Folder
from pyprefopt.types import unkeyed_names

CONFIG = "config.yaml"
REMEDY = "choose another output_dir, or set overwrite to replace it (what fits of the other stages is used again)"

logger = logging.getLogger("pyprefopt")


def check_output_dir(config: RunConfig) -> None:
    """Look at `output_dir` before anything is made: by settings. `check_data` and `check_key` look at contents.

    Raises:
        ArtifactError: it holds a finished policy of other settings, or a folder `policy` that no run made there.
    """
    output_dir = Path(config.output_dir)
    names = [path.name for path in sorted(output_dir.iterdir()) if not path.name.startswith(".")]
    names = [name for name in names if name != INPUTS]
    begun = CONFIG in names or (output_dir / "stages").exists()
    if names and not begun:
        logger.warning(
            "%s holds other files (%s) and no run; this run writes beside them", output_dir, ", ".join(names[:3])
        )
    if config.overwrite or not _holds_policy(output_dir):
        return
    if not _policy_stage(output_dir).pending:
        raise ArtifactError(f"{output_dir / 'policy'} was made by no run that is in {output_dir}; {REMEDY}")
    if _finished(output_dir) is None:
        return
    before, now, unkeyed = _settings_before(output_dir), dotted(as_dict(config)), unkeyed_names(RunConfig)
    changed = [n for n, value in before.items() if n in now and n not in unkeyed and value != now[n]]
    if changed:
        first = "method" if "method" in changed else changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ArtifactError(
            f"{output_dir} holds a finished {before.get('method')} policy of other settings ({first} was "
            f"{before[first]}, now {now[first]}{more}); {REMEDY}"
        )


def check_data(config: RunConfig, data: Artifact) -> None:
    """ArtifactError where `output_dir` holds a finished policy that was trained on other data."""
    output_dir = Path(config.output_dir)
    finished = None if config.overwrite else _finished(output_dir)
    if finished is not None and finished.get("reads", {}).get("data", data.fingerprint) != data.fingerprint:
        raise ArtifactError(f"{output_dir} holds a finished policy that was trained on other data; {REMEDY}")


def check_key(config: RunConfig, policy: Stage) -> None:
    """ArtifactError where `output_dir` holds a finished policy of another key than the stage `policy` has."""
    output_dir = Path(config.output_dir)
    finished = None if config.overwrite else _finished(output_dir)
    if finished is not None and finished["key"] != policy.key:
        before, now = dotted(finished.get("reads", {})), dotted(policy.reads)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        other = [name.removeprefix("optim.") for name in changed if before]
        raise ArtifactError(
            f"{output_dir} holds a finished policy that was made with other {', '.join(other) or 'formats'}; {REMEDY}"
        )


def _holds_policy(output_dir: Path) -> bool:
    return (output_dir / "policy").is_dir() and any((output_dir / "policy").iterdir())


def _policy_stage(output_dir: Path) -> Folder:
    return Folder(output_dir / "stages" / "policy")


def _finished(output_dir: Path) -> dict[str, Any] | None:
    """The manifest of the policy that is there."""
    return _policy_stage(output_dir).find_manifest() if _holds_policy(output_dir) else None


def _settings_before(output_dir: Path) -> dict[str, Any]:
    """The settings of the last run by dotted name; none where they cannot be read."""
    try:
        return dotted(read_yaml(output_dir / CONFIG))
    except ConfigError:
        return {}
