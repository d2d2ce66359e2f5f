"""What evaluations of a policy beside its reference begin with: their own folder, and its stages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.errors import ArtifactError, check
from pyprefopt.log import run_log
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.overwrite import CONFIG, POLICY
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.stages.sources import source_of
from pyprefopt.storage.files import explaining

logger = logging.getLogger("pyprefopt")

FIXED = {"method": "dpo", "eval_ratio": 0.0}  # settings of every evaluation: all pairs are scored, nothing is trained
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
            resolve_source(model, trust_remote_code=bool(settings.get("trust_remote_code")), setting=setting)
    config: RunConfig = configure(**settings, **FIXED, data=data, model=policy, output_dir=out)
    folder = Path(out)
    if any((folder / name).exists() for name in (CONFIG, POLICY)):
        raise ArtifactError(f"out must not be the folder of a run, got '{folder}'; choose another folder")
    ranks.set_threads(config.threads)
    with RunLock(folder), run_log(folder, config.log_level), explaining(folder):
        if not prompts_only:
            _warn_of_truncation(source_of(config, "train"))
        yield Pipeline(config)


def _warn_of_truncation(given: Any) -> None:
    if given.folder is not None and given.store.manifest["settings"]["truncation"] and ranks.is_main():
        logger.warning(
            "%s was prepared with truncation (%s): whole responses are here what that has left", given.path,
            ", ".join(f"{name} {value}" for name, value in given.store.manifest["settings"]["truncation"].items()),
        )  # fmt: skip


def name_data(data: Any) -> str:
    """What was evaluated, as records have it: the names of files; of a table its type."""
    names = data if isinstance(data, list | tuple) else [data]
    return " ".join(str(name) if isinstance(name, str | Path) else type(name).__name__ for name in names)
