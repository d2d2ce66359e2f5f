"""A run from its settings to the policy, or (`--check`) one step of each of its stages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.modeling.memory import estimate_memory
from pyprefopt.pipeline.check_method import check_own
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.overwrite import CONFIG, check_output_dir
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.summary import format_table, summarize, write_summary
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.in_memory import INPUTS
from pyprefopt.settings.resolve import as_config, to_yaml
from pyprefopt.settings.rules import check_compatible
from pyprefopt.stages.models import open_trained
from pyprefopt.storage.files import atomic_write
from pyprefopt.training.engine import deepspeed_config, init_distributed

GIB = 2**30


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    output_dir: Path  # the run's folder: config.yaml, metrics.jsonl, summary.json, stages/, policy/
    policy: Path  # loads with AutoModelForCausalLM.from_pretrained; after `check` it is removed again
    summary: dict[str, Any]  # the final table, as in summary.json; times in seconds, memory in bytes


def train(config: RunConfig | str | os.PathLike[str] | Mapping[str, Any] | None = None, **settings: Any) -> RunResult:
    """Run all stages of a method.

    Finished stages are reused, an interrupted one goes on. Every rank of a launcher calls this; rank 0 writes the
    files and prints the final table.

    Args:
        config: the run: complete, of `configure` or `load_config`, or a YAML file. With `check` each stage takes one
            step in `output_dir/check`, which is then removed, and rank 0 prints what it saw.
        **settings: the run's settings by name, as `configure` takes them; over those of the file, if one is given.

    Returns:
        The folders of the run and of its policy, and the final table.

    Raises:
        ConfigError: settings that break a rule or contradict each other.
        DataError: bad input rows under `on_error="raise"`.
        ArtifactError: another run writes to the output directory, or what is on disk does not fit.
        TrainingError: a loss or gradient that is not finite; names the rows.

    Example:
        >>> result = train(method="dpo", data="pairs.jsonl", model="models/base")  # doctest: +SKIP
        >>> model = AutoModelForCausalLM.from_pretrained(result.policy)  # doctest: +SKIP
    """
    config = as_config(config, settings)
    check_compatible(config)  # some of its settings may have been replaced
    output_dir = Path(config.output_dir)
    ranks.set_threads(config.threads)
    deepspeed_config(config, config)  # a file that is missing or contradicts ours is reported before anything is made
    own = check_own(config)
    with RunLock(output_dir):
        if config.check:
            return _check(config, output_dir)
        if ranks.is_main():
            check_output_dir(config)
            atomic_write(output_dir / CONFIG, to_yaml(replace(config, overwrite=False)).encode())
            for file in own:
                file.copy_into(output_dir / INPUTS)
        pipeline = Pipeline(config)
        policy = pipeline.policy
        summary = summarize(config, pipeline.made)
        if ranks.is_main():
            write_summary(output_dir, summary)
            print(format_table(summary))
    return RunResult(output_dir, Path(policy.path), summary)


def _check(config: RunConfig, output_dir: Path) -> RunResult:
    init_distributed()
    _clean_up(output_dir)  # what a failed check left
    ranks.barrier()
    pipeline = Pipeline(_one_step(config))
    policy = pipeline.policy
    summary = summarize(config, pipeline.made)
    if ranks.is_main():
        print(_report(pipeline))
    ranks.barrier()  # the others may still be waiting for the last stage's manifest
    _clean_up(output_dir)
    return RunResult(output_dir, Path(policy.path), summary)


def _one_step(config: RunConfig) -> RunConfig:
    """The same run with one optimizer step a stage, in a folder of its own."""
    return replace(
        config,
        max_steps=1,
        base=replace(config.base, max_steps=1),
        oracle=replace(config.oracle, max_steps=1),
        output_dir=str(Path(config.output_dir) / "check"),
        cache=None,
    )


def _report(pipeline: Pipeline) -> str:
    """What the check saw, and the memory that training will take."""
    config, data = pipeline.config, pipeline.data
    facts = data.facts
    model = open_trained(
        pipeline.start.to_train(config), data, config,
        needs=config.loss.needs, dtype=config.dtype, lora=config.lora, seed=config.seed,
    )  # fmt: skip
    estimate = estimate_memory(
        model, tokens=config.max_tokens_per_batch, gradient_checkpointing=config.gradient_checkpointing
    )
    parts = ", ".join(
        f"{name} {getattr(estimate, name) / GIB:.2g}"
        for name in ("parameters", "gradients", "optimizer", "activations")
    )
    return "\n".join(
        [
            f"check passed: {facts['rows_in']} rows read, {facts['rows_used']} used, "
            f"{facts['rows_rejected']} rejected, {facts['responses_cut']} responses cut to max_tokens",
            f"one optimizer step of each stage ran: {', '.join(pipeline.made)}",
            f"memory of one rank without ZeRO, estimated for {config.max_tokens_per_batch} tokens a micro-batch: "
            f"{estimate.total / GIB:.2f} GiB ({parts})",
        ]
    )


def _clean_up(output_dir: Path) -> None:
    """Remove what the check made, but keep the list of bad rows."""
    if not ranks.is_main():
        return
    folder = output_dir / "check"
    if (folder / "rejected.jsonl").exists():
        shutil.move(folder / "rejected.jsonl", output_dir / "rejected.jsonl")
    shutil.rmtree(folder, ignore_errors=True)
