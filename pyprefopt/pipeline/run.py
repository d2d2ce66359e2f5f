"""A run from its settings to the policy, or (`--check`) a look at it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.log import run_log
from pyprefopt.pipeline.check import run_check
from pyprefopt.pipeline.generation.rounds import train_rounds
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.overwrite import CONFIG, POLICY, check_output_dir, replaces, take_place
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.room import check_room
from pyprefopt.pipeline.summary import format_table, log_embedded, summarize, write_summary
from pyprefopt.pipeline.trials.check import check_own
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.in_memory import INPUTS
from pyprefopt.settings.resolve import as_config, to_yaml
from pyprefopt.settings.rules import check_compatible
from pyprefopt.storage.files import atomic_write, explaining
from pyprefopt.training.engine import deepspeed_config, init_distributed


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    output_dir: Path  # the run's folder: config.yaml, metrics.jsonl, summary.json, stages/, policy/
    policy: Path  # loads with AutoModelForCausalLM.from_pretrained; not there after `check`
    summary: dict[str, Any]  # the final table, as in summary.json; times in seconds, memory in bytes


def train(config: RunConfig | str | os.PathLike[str] | Mapping[str, Any] | None = None, **settings: Any) -> RunResult:
    """Run all stages of a method.

    Finished stages are reused, an interrupted one goes on. Every rank of a launcher calls this; rank 0 writes the
    files and prints the final table.

    Args:
        config: the run: complete, of `configure` or `load_config`, or a YAML file. With `check` each stage takes one
            micro-batch of the first rows, nothing is written, and rank 0 prints what it saw and what the run will take.
        **settings: the run's settings by name, as `configure` takes them; over those of the file, if one is given. With
            `on_policy_rounds` each round is a run of its own below `output_dir`, and the summary has their samples.

    Returns:
        The folders of the run and of its policy, and the final table.

    Raises:
        ConfigError: settings that break a rule or contradict each other.
        DataError: bad input rows under `on_error="raise"`.
        ArtifactError: another run writes to the output directory, what is on disk does not fit, or the disk has too
            little room.
        TrainingError: a loss or gradient that is not finite; names the rows.

    Example:
        >>> result = train(method="dpo", data="pairs.jsonl", model="models/base")  # doctest: +SKIP
        >>> model = AutoModelForCausalLM.from_pretrained(result.policy)  # doctest: +SKIP
    """
    config = as_config(config, settings)
    log_embedded(config)
    check_compatible(config)  # some of its settings may have been replaced
    ranks.set_threads(config.threads)
    if config.on_policy_rounds > 0:
        rounds = train_rounds(config, lambda own: _train_once(own).policy)
        return RunResult(Path(config.output_dir), rounds.policy, {"rounds": rounds.facts})
    return _train_once(config)


def _train_once(config: RunConfig) -> RunResult:
    output_dir = Path(config.output_dir)
    deepspeed_config(config, config)  # a file that is missing or contradicts ours is reported before anything is made
    own = check_own(config)
    if config.check:
        own.warn()
        return RunResult(output_dir, output_dir / POLICY, run_check(config))
    with RunLock(output_dir), run_log(output_dir, config.log_level), explaining(output_dir):
        own.warn()
        if ranks.is_main():
            check_output_dir(config)
        pipeline = Pipeline(config, replaces=_replaces(config))
        if ranks.is_main():
            atomic_write(pipeline.target / CONFIG, to_yaml(replace(config, overwrite=False)).encode())
            for file in own.files:
                file.copy_into(output_dir / INPUTS)
        check_room(pipeline)
        _ = pipeline.policy
        summary = summarize(config, pipeline.made)
        if ranks.is_main():
            write_summary(pipeline.target, summary)
            if pipeline.replaces:
                take_place(output_dir, pipeline.made)
            print(format_table(summary))
        elif pipeline.replaces:
            ranks.wait_until(lambda: not pipeline.target.exists() or None, output_dir / POLICY)
    return RunResult(output_dir, output_dir / POLICY, summary)


def _replaces(config: RunConfig) -> bool:
    """`overwrite.replaces` as rank 0 sees it."""
    if config.overwrite and ranks.world_size() > 1:
        init_distributed()
        return bool(ranks.from_main(replaces(config)))
    return replaces(config)
