"""A run: which stages a method needs, in one place, each made when first asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyprefopt.data.atomic import atomic_write
from pyprefopt.errors import ConfigError
from pyprefopt.losses import SFT, Method
from pyprefopt.modeling.load import resolve_source
from pyprefopt.stages.artifact import Artifact, Build, Stage, run_stage
from pyprefopt.stages.check import clean_up, one_step, report
from pyprefopt.stages.data import build_data, data_stage
from pyprefopt.stages.fit import Training, check_user_weights, run_training
from pyprefopt.stages.models import Source, check_vocabulary, open_model, start_model
from pyprefopt.stages.score import (
    build_logps,
    build_scores,
    build_selection,
    logps_stage,
    scores_stage,
    selection_stage,
)  # fmt: skip
from pyprefopt.stages.summary import format_table, summarize, write_summary
from pyprefopt.train import dist
from pyprefopt.train.config import OptimConfig, RunConfig
from pyprefopt.train.engine import deepspeed_config, init_distributed
from pyprefopt.train.resolve import resolve, to_yaml

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    output_dir: Path
    policy: Path  # loads with AutoModelForCausalLM.from_pretrained
    summary: dict[str, Any]  # the final table, as in summary.json


class Pipeline:
    """The stages of one run. Asking for a stage makes all that it needs, and nothing else."""

    def __init__(self, config: RunConfig) -> None:
        assert config.output_dir is not None  # noqa: S101  (filled by resolve)
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.made: dict[str, Artifact] = {}  # in the order in which they were asked for

    def _run(self, stage: Stage, build: Build, **options: Any) -> Artifact:
        artifact = run_stage(stage, self.output_dir / "stages" / stage.name, build, **options)
        self.made[stage.name] = artifact
        return artifact

    @cached_property
    def data(self) -> Artifact:
        """Segments of every split, and the tokenizer."""
        data = self._run(data_stage(self.config), lambda directory: build_data(self.config, directory))
        for name in ("base", "oracle"):  # looked at before anything is trained for hours
            path = getattr(self.config, name).path
            if path is not None:
                try:
                    resolve_source(path, trust_remote_code=self.config.trust_remote_code)
                except ConfigError as error:
                    raise ConfigError(f"{name}.path: {error}") from None
                check_vocabulary(f"{name}.path", path, data)
        return data

    @cached_property
    def start(self) -> Source:
        """The model as given."""
        return start_model(self.config, self.data)

    @cached_property
    def base(self) -> Source:
        """The SFT base: `--base`, or trained from `--model`."""
        config = self.config.base
        if config.path is not None:
            return Source.given(config.path, self.config)
        return self._train("base", config, SFT(), self.start)

    @cached_property
    def base_logps(self) -> Artifact:
        """The base's log-probs in float32: what tokens are scored against."""
        return self._logps("base_logps", self.base, "float32")

    @cached_property
    def oracle(self) -> Source:
        """The DPO oracle: `--oracle`, or trained from the base."""
        config = self.config.oracle
        if config.path is not None:
            return Source.given(config.path, self.config)
        ref = (
            self.base_logps
            if self.config.dtype == "float32"
            else self._logps("oracle_ref", self.base, self.config.dtype)
        )
        return self._train("oracle", config, config.loss, self.base, ref_logps=ref, fraction=config.fraction)

    @cached_property
    def scores(self) -> Artifact:
        """Token scores: log pi_oracle - log pi_base."""
        oracle = self._logps("oracle_logps", self.oracle, "float32")
        return self._run(
            scores_stage(oracle, self.base_logps),
            lambda directory: build_scores(self.data, oracle, self.base_logps, directory),
        )

    @cached_property
    def selection(self) -> Artifact | None:
        """The tokens that the policy is trained on; None where the method takes all."""
        rule, seed = self.config.selection, self.config.seed
        if not rule.active:
            return None
        scores = self.scores if rule.needs_scores else None
        return self._run(
            selection_stage(rule, self.data, scores, seed),
            lambda directory: build_selection(rule, self.data, scores, seed, directory),
        )

    @cached_property
    def policy(self) -> Source:
        """The run's method, trained from `--model` or from the base."""
        config, _ = self.config, self.data  # the data, and what was given, are looked at before anything else
        check_user_weights(config.loss, self.data)
        start = self.base if config.policy_init == "base" else self.start
        selection = self.selection
        needs_ref = "ref_logps" in config.loss.needs
        ref = self._logps("ref_logps", start, config.dtype) if needs_ref else None
        return self._train("policy", config, config.loss, start, ref_logps=ref, selection=selection, user_weights=True)

    def _train(self, name: str, optim: OptimConfig, method: Method, start: Source, **inputs: Any) -> Source:
        target = self.output_dir / ("policy" if name == "policy" else f"stages/{name}/model")
        training = Training(name, optim, method, start, self.data, target, **inputs)
        artifact = self._run(
            training.stage(self.config),
            lambda directory: run_training(self.config, training, directory),
            outputs=[target],
            collective=True,
        )
        return Source(str(target), artifact.fingerprint)

    def _logps(self, name: str, source: Source, dtype: str) -> Artifact:
        def build(directory: Path) -> dict[str, Any]:
            model = open_model(self.config, source, self.data, dtype=dtype, trained=False).to(init_distributed())
            return build_logps(self.config, self.data, model, directory, title=name, key=stage.key)

        stage = logps_stage(self.data, source.fingerprint, dtype)
        directory = self.output_dir / "stages" / f"logps-{stage.key[:12]}"  # by content: equal inputs are scored once
        self.made[name] = run_stage(stage, directory, build, label=name, collective=True)
        return self.made[name]


def train(config: RunConfig) -> RunResult:
    """Run all stages of `config.method`; finished ones are reused, an interrupted one goes on.

    Raises:
        ConfigError: settings that break a rule or contradict each other.
        DataError: bad input rows under `on_error="raise"`.
        ArtifactError: another run holds the output directory, or what is on disk does not fit.
        TrainingError: a loss that is not finite; names the rows.
    """
    config = resolve(config)
    assert config.output_dir is not None  # noqa: S101  (filled by resolve)
    output_dir = Path(config.output_dir)
    dist.set_threads(config.threads)
    deepspeed_config(config, config)  # a file that is missing or contradicts ours is told before anything is made
    with dist.RunLock(output_dir):
        if config.check:
            return _check(config, output_dir)
        if dist.is_main():
            atomic_write(output_dir / "config.yaml", to_yaml(config).encode())
        pipeline = Pipeline(config)
        policy = pipeline.policy
        summary = summarize(config, pipeline.made)
        if dist.is_main():
            write_summary(output_dir, summary)
            print(format_table(summary))
    return RunResult(output_dir, Path(policy.path), summary)


def _check(config: RunConfig, output_dir: Path) -> RunResult:
    init_distributed()
    clean_up(output_dir)  # what a failed check left
    dist.barrier()
    pipeline = Pipeline(one_step(config))
    policy = pipeline.policy
    summary = summarize(config, pipeline.made)
    if dist.is_main():
        print(report(pipeline))
    dist.barrier()  # the others may still be waiting for the last stage's manifest
    clean_up(output_dir)
    return RunResult(output_dir, Path(policy.path), summary)
