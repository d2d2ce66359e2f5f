"""What a run must not destroy unasked: the finished policy of other settings, and files that no run made.

With `overwrite` the new run is made in a folder inside, and takes the old one's place when its policy is finished.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.log import RUN_LOG
from pyprefopt.settings.command_line import dotted
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.in_memory import INPUTS
from pyprefopt.settings.typed import as_dict, read_yaml
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.storage.folders import Folder
from pyprefopt.types import unkeyed_names

CONFIG, METRICS, SUMMARY, REJECTED, POLICY = "config.yaml", "metrics.jsonl", "summary.json", "rejected.jsonl", "policy"
BOARD = "tensorboard"
REPLACEMENT = "replacement"  # the folder in output_dir of a run that is to take the place of the one there
REMEDY = "choose another output_dir, or set overwrite to replace it (what fits of the other stages is used again)"

logger = logging.getLogger("pyprefopt")


def check_output_dir(config: RunConfig) -> None:
    """Look at `output_dir` before anything is made: by settings. `check_data` and `check_key` look at contents.

    Raises:
        ArtifactError: it holds a finished policy of other settings, or a folder `policy` that no run made there.
    """
    output_dir = Path(config.output_dir)
    _move(output_dir)  # what a killed run had begun to move
    names = [path.name for path in sorted(output_dir.iterdir()) if not path.name.startswith(".")]
    names = [name for name in names if name not in (INPUTS, RUN_LOG)]
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
    changed = changed_settings(output_dir, config)
    if changed:
        first = "method" if "method" in changed else next(iter(changed))
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        other = output_dir / REPLACEMENT
        goes_on = f"; {other} has what such a run has begun" if other.exists() else ""
        raise ArtifactError(
            f"{output_dir} holds a finished {_settings_before(output_dir).get('method')} policy of other settings "
            f"({first} was {changed[first][0]}, now {changed[first][1]}{more}); {REMEDY}{goes_on}"
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


def replaces(config: RunConfig) -> bool:
    """Whether the run is made in the folder REPLACEMENT, because a policy is there that stays until it is finished."""
    return config.overwrite and _holds_policy(Path(config.output_dir))


def take_place(output_dir: Path, made: Mapping[str, Artifact]) -> None:
    """Put the finished run in REPLACEMENT in the place of the one in `output_dir`.

    Its metrics are completed by those of stages that it has used again. Once its manifest is there, whoever is killed
    on the way leaves the rest to the next run.

    made: the stages of the new run, by name.
    """
    new = Folder(output_dir / REPLACEMENT)
    fresh = {name for name, artifact in made.items() if artifact.directory.is_relative_to(new.path)}
    lines = [line for line in _lines(output_dir) if line["stage"] in made.keys() - fresh]
    lines += [line for line in _lines(new.path) if line["stage"] in fresh]
    atomic_write(new.path / METRICS, "".join(json.dumps(line) + "\n" for line in lines).encode())
    parts = [made[name].directory.relative_to(new.path) for name in fresh]
    parts += [Path(BOARD, name) for name in fresh] + [
        Path(name) for name in (POLICY, METRICS, SUMMARY, REJECTED, CONFIG)
    ]
    found = [str(part) for part in parts if (new.path / part).exists()]
    new.finish({"parts": found, "stages": sorted(made)})
    _move(output_dir)


def _move(output_dir: Path) -> None:
    """Move what a finished replacement holds; nothing where there is none."""
    new = Folder(output_dir / REPLACEMENT)
    manifest = new.find_manifest()
    if manifest is None:
        return
    for old in (output_dir / BOARD).glob("*"):
        if old.name not in manifest["stages"]:
            shutil.rmtree(old)
    if REJECTED not in manifest["parts"]:
        (output_dir / REJECTED).unlink(missing_ok=True)
    for part in manifest["parts"]:
        if (new.path / part).exists():
            _swap(new.path / part, output_dir / part)
    new.remove()


def _swap(new: Path, old: Path) -> None:
    """Rename `new` to `old`; what was there is removed."""
    gone = new.with_name(f".{new.name}.old")
    Folder(gone).remove()
    old.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() or old.is_symlink():
        old.rename(gone)
    new.rename(old)
    Folder(gone).remove()


def _lines(directory: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without a line that a kill has cut."""
    path = directory / METRICS
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _holds_policy(output_dir: Path) -> bool:
    return (output_dir / POLICY).is_dir() and any((output_dir / POLICY).iterdir())


def _policy_stage(output_dir: Path) -> Folder:
    return Folder(output_dir / "stages" / "policy")


def _finished(output_dir: Path) -> dict[str, Any] | None:
    """The manifest of the policy that is there."""
    return _policy_stage(output_dir).find_manifest() if _holds_policy(output_dir) else None


def changed_settings(output_dir: Path, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that decide a result and were others in the last run there, by dotted name: before, now."""
    before, now, unkeyed = _settings_before(output_dir), dotted(as_dict(config)), unkeyed_names(RunConfig)
    return {n: (value, now[n]) for n, value in before.items() if n in now and n not in unkeyed and value != now[n]}


def _settings_before(output_dir: Path) -> dict[str, Any]:
    """The settings of the last run by dotted name; none where they cannot be read."""
    try:
        return dotted(read_yaml(output_dir / CONFIG))
    except ConfigError:
        return {}
