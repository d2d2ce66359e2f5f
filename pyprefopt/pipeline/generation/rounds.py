"""`pyprefopt train --on_policy_rounds N`: pairs of the policy's own samples, a training on them, and again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.data.embedded import COMPANIONS
from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.generation.decoders import Sample
from pyprefopt.log import run_log
from pyprefopt.pipeline.generation.generate import sample
from pyprefopt.pipeline.generation.judging import check_judge, judge_samples
from pyprefopt.pipeline.generation.pairs import TABLE, format_facts, on_policy_pairs, sampling_of
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.overwrite import CONFIG, POLICY, changed_settings
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.preflight import check_given, check_start
from pyprefopt.settings.config import BaseConfig, OnPolicyConfig, RunConfig
from pyprefopt.settings.resolve import to_yaml
from pyprefopt.settings.rules import check_compatible, uses_base
from pyprefopt.stages.data import tokenizer_source
from pyprefopt.stages.generation.pairs import FILE, describe_samples
from pyprefopt.stages.generation.samples import read_samples
from pyprefopt.stages.sources import named_sources
from pyprefopt.storage.files import atomic_write, explaining
from pyprefopt.storage.hub import is_bare
from pyprefopt.tables import write_csv

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True)
class Rounds:
    """What the rounds leave behind."""

    policy: Path  # of the last round
    facts: list[dict[str, Any]]  # of the samples that each policy draws, that of the start first


def train_rounds(config: RunConfig, train: Callable[[RunConfig], Path]) -> Rounds:
    """Train in rounds: each policy generates the pairs that the next one is trained on, and is its reference.

    Every round is a run of its own in `output_dir`/round-N, which a killed call goes on with; what its policy then
    generates, with scores and pairs, is in samples-N (0: of the start). Where the policy starts from a base, that is
    trained first, in round-0.

    Args:
        config: the run; its data give the prompts.
        train: runs one training, and gives its policy's folder.

    Raises:
        ConfigError: nothing ranks the samples, a model without weights, or settings that rounds do not take.
    """
    _check(config)
    root = Path(config.output_dir)
    if ranks.is_main():
        _check_folder(root, config)
    with RunLock(root), run_log(root, config.log_level), explaining(root):
        if ranks.is_main():
            atomic_write(root / CONFIG, to_yaml(config).encode())
        tokenizer = tokenizer_source(config)
        policy, facts = _start(config), []
        for number in range(1, config.on_policy_rounds + 1):
            logger.info("round %d of %d: pairs of %s", number, config.on_policy_rounds, policy)
            pairs = on_policy_pairs(_generation(config, number - 1, policy, tokenizer), policy)
            facts.append(pairs.facts)
            policy = str(train(round_config(config, number, policy, tokenizer, pairs.directory / FILE)))
        facts.append(_measure(_generation(config, config.on_policy_rounds, policy, tokenizer), policy))
        if ranks.is_main():
            _write(root, facts, Path(policy))
    return Rounds(root / POLICY, facts)


def round_config(config: RunConfig, number: int, policy: str, tokenizer: str, pairs: Path) -> RunConfig:
    """The settings of one round: the policy is the model that it starts from, its reference and (SePO) its base."""
    companions = COMPANIONS.get(config.data, {}) if isinstance(config.data, str) else {}
    given: dict[str, Any] = {
        "data": str(pairs), "eval_data": config.eval_data or companions.get("eval_data"), "columns": (),
        "format": "auto", "aspect": None, "model": policy, "tokenizer": tokenizer, "policy_init": "model",
        "output_dir": str(Path(config.output_dir) / f"round-{number}"), "on_policy_rounds": 0,
        "on_policy": OnPolicyConfig(), "base": BaseConfig(),
    }  # fmt: skip
    plain = replace(config, **given)
    if config.oracle.path is not None and config.base.path is not None:
        plain = replace(plain, base=config.base)  # what the oracle was trained from
    elif uses_base(plain):
        plain = replace(plain, base=BaseConfig(path=policy))
    check_compatible(plain)
    return plain


def _check(config: RunConfig) -> None:
    if config.on_policy.reward_model is None:
        raise ConfigError(
            "on_policy.reward_model must be given with on_policy_rounds; it ranks what the policy generates"
        )
    for name, given, remedy in (
        ("check", config.check, "check a single run, without on_policy_rounds"),
        ("overwrite", config.overwrite, "choose another output_dir"),
        ("columns", config.columns and config.eval_data is not None, "name the columns of data and eval_data alike"),
        ("format", config.format != "auto", "prompts are read by their columns; see docs/generation.md"),
    ):
        if given:
            raise ConfigError(f"{name} does not go with on_policy_rounds; {remedy}")
    starts_from_base = config.policy_init == "base"
    if not starts_from_base and is_bare(config.model):
        raise ConfigError(
            f"model must have weights to generate from, got {config.model!r}; give a trained one, or policy_init base"
        )
    sources = named_sources(config)
    if sources["data"].folder is not None:
        raise ConfigError(f"data must be texts with on_policy_rounds, got the prepared folder '{config.data}'")
    if "eval_data" in sources:
        _ = sources["eval_data"].rows
    check_judge(config, config.on_policy.reward_model)
    check_given(config)
    check_start(config)


def _check_folder(root: Path, config: RunConfig) -> None:
    """ArtifactError where the folder holds a run without rounds, or rounds of other settings; more may follow."""
    policy = root / POLICY
    if policy.exists() and not policy.is_symlink():
        raise ArtifactError(f"{root} holds a run without rounds; choose another output_dir")
    changed = changed_settings(root, config)
    changed.pop("on_policy_rounds", None)
    for name, (before, now) in changed.items():
        raise ArtifactError(
            f"{root} holds rounds of other settings ({name} was {before!r}, is {now!r}); choose another output_dir"
        )


def _start(config: RunConfig) -> str:
    """The model that the first round generates with."""
    if config.policy_init != "base":
        return config.model
    if config.base.path is not None:
        return config.base.path
    folder = Path(config.output_dir) / "round-0"
    given: dict[str, Any] = {"output_dir": str(folder), "on_policy_rounds": 0, "on_policy": OnPolicyConfig()}
    return Pipeline(replace(config, **given)).base.path


def _generation(config: RunConfig, number: int, policy: str, tokenizer: str) -> Pipeline:
    """The stages in which the policy of a round generates."""
    folder = Path(config.output_dir) / f"samples-{number}"
    return Pipeline(replace(config, model=policy, tokenizer=tokenizer, output_dir=str(folder), cache=None))


def _measure(pipeline: Pipeline, policy: str) -> dict[str, Any]:
    """What the last policy's samples are like; on rank 0, which has their scores."""
    settings = pipeline.config.on_policy
    samples, _ = sample(pipeline, policy, None, [Sample()], sampling_of(pipeline.config), settings.samples)
    judged = judge_samples(pipeline, samples, settings.reward_model)
    return describe_samples(read_samples(samples, ["row", "finished", "ids"]), judged.scores) if ranks.is_main() else {}


def _write(root: Path, facts: list[dict[str, Any]], policy: Path) -> None:
    """The table of the rounds, as a file and on the terminal, and the last policy under the name that a run has."""
    import polars as pl

    names = [name for name, _ in TABLE]
    lines = [{"round": number, **{name: own.get(name) for name in names}} for number, own in enumerate(facts)]
    write_csv(pl.DataFrame(lines, infer_schema_length=None), root / "rounds.csv")
    link = root / POLICY
    link.unlink(missing_ok=True)
    link.symlink_to(policy.resolve().relative_to(root.resolve()), target_is_directory=True)
    print(
        f"samples of the policy after each round, 0 before the first\n{format_facts(facts, round=[*range(len(facts))])}"
    )
    print(f"{root / POLICY}: the policy of the last round")
