"""What evaluations of a policy beside its reference begin with: their own folder, and its stages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.errors import ConfigError, check
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.work_folder import check_own_folder, work_folder
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.stages.scoring.limits import UNTRAINED
from pyprefopt.stages.sources import source_of

logger = logging.getLogger("pyprefopt")

FIXED = {"method": "dpo", **UNTRAINED}  # settings of every evaluation: all pairs are scored
WHAT = "look for NaN in the weights of policy and ref"


@contextmanager
def open_evaluation(
    data: Any, policy: str | Path, ref: str | Path | None, out: str | Path, settings: dict[str, Any],
    *, prompts_only: bool = False,
) -> Iterator[Pipeline]:  # fmt: skip
    """The stages of an evaluation, in its own folder, whose name and settings it checks."""
    for name, value in settings.items():
        check(name not in FIXED, name, value, "left out of an evaluation", "it trains nothing")
    for setting, model in (("policy", policy), ("ref", ref)):
        if model is not None:
            check(isinstance(model, str | Path), setting, type(model).__name__, "a directory, hub name or config.json")
            resolve_source(model, trust_remote_code=bool(settings.get("trust_remote_code")), setting=setting)
    check_own_folder(out, "out")
    config: RunConfig = configure(**settings, **FIXED, data=data, model=policy, output_dir=out)
    with work_folder(config, setting="out", record=False):
        if not prompts_only:
            _warn_of_truncation(_pairs_of(config))
        yield Pipeline(config)


def _pairs_of(config: RunConfig) -> Any:
    source = source_of(config, "train")
    try:
        _ = source.rows if source.folder is None else None
    except ConfigError:
        if not source.holds_candidates():
            raise
        raise ConfigError(
            f"data must be pairs in an evaluation, and '{source.path}' holds candidates; make pairs of them: "
            "pyprefopt pairs"
        ) from None
    return source


def _warn_of_truncation(given: Any) -> None:
    if given.folder is not None and given.store.manifest["settings"]["truncation"] and ranks.is_main():
        logger.warning(
            "%s was prepared with truncation (%s): whole responses are here what that has left", given.path,
            ", ".join(f"{name} {value}" for name, value in given.store.manifest["settings"]["truncation"].items()),
        )  # fmt: skip


def clear_results(folder: Path, name: str) -> None:
    """Remove tables and figures of an earlier call, which may have made others than this one will."""
    for path in folder.glob(f"{name}*"):
        if path.suffix in (".csv", ".json", ".png", ".svg") and path.is_file():
            path.unlink()


def name_data(data: Any) -> str:
    """What was evaluated, as records have it: the names of files; of a table its type."""
    names = data if isinstance(data, list | tuple) else [data]
    return " ".join(str(name) if isinstance(name, str | Path) else type(name).__name__ for name in names)
