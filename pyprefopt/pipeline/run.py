"""A run from its settings to the policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.pipeline.check import clean_up, one_step, report
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.overwrite import CONFIG, check_output_dir
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.summary import format_table, summarize, write_summary
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import to_yaml
from pyprefopt.settings.rules import check_compatible
from pyprefopt.storage.files import atomic_write
from pyprefopt.training.engine import deepspeed_config, init_distributed


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    output_dir: Path
    policy: Path  # loads with AutoModelForCausalLM.from_pretrained
    summary: dict[str, Any]  # the final table, as in summary.json


def train(config: RunConfig) -> RunResult:
    """Run all stages of `config.method`; finished ones are reused, an interrupted one goes on.

    Raises:
        ConfigError: settings that break a rule or contradict each other.
        DataError: bad input rows under `on_error="raise"`.
        ArtifactError: another run holds the output directory, or what is on disk does not fit.
        TrainingError: a loss that is not finite; names the rows.
    """
    check_compatible(config)  # some of its settings may have been replaced
    output_dir = Path(config.output_dir)
    ranks.set_threads(config.threads)
    deepspeed_config(config, config)  # a file that is missing or contradicts ours is told before anything is made
    with RunLock(output_dir):
        if config.check:
            return _check(config, output_dir)
        if ranks.is_main():
            check_output_dir(config)
            atomic_write(output_dir / CONFIG, to_yaml(replace(config, overwrite=False)).encode())
        pipeline = Pipeline(config)
        policy = pipeline.policy
        summary = summarize(config, pipeline.made)
        if ranks.is_main():
            write_summary(output_dir, summary)
            print(format_table(summary))
    return RunResult(output_dir, Path(policy.path), summary)


def _check(config: RunConfig, output_dir: Path) -> RunResult:
    init_distributed()
    clean_up(output_dir)  # what a failed check left
    ranks.barrier()
    pipeline = Pipeline(one_step(config))
    policy = pipeline.policy
    summary = summarize(config, pipeline.made)
    if ranks.is_main():
        print(report(pipeline))
    ranks.barrier()  # the others may still be waiting for the last stage's manifest
    clean_up(output_dir)
    return RunResult(output_dir, Path(policy.path), summary)
