"""The studies: what each one varies, on which grid, and which runs stand behind one point of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyprefopt.errors import check
from pyprefopt.modeling.checkpoints.load import toy_config
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.config import BaseConfig, OracleConfig, RunConfig
from pyprefopt.settings.resolve import with_settings
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.storage.hub import EMBEDDED_DATA, is_bare

Values = Mapping[str, Any]  # column -> value, of one cell
OpenPipeline = Callable[[RunConfig], Pipeline]


@dataclass(frozen=True)
class Axis:
    """Something that a study varies."""

    option: str  # its values on the command line, `--alphas 0 0.5`
    column: str  # its name in the tables
    setting: str | None  # the run's setting that takes the value; None: `Study.run` knows what to do with it
    values: tuple[Any, ...]  # the paper's grid
    quick: tuple[Any, ...]  # a few points of it
    embedded_only: bool = False  # the values are for the embedded model; with --model, the user gives others
    check: Callable[[Any], None] | None = None  # ConfigError for a value that no setting refuses

    @property
    def kind(self) -> type:
        """The type of its values: float, int or str."""
        return type(self.values[0])


def run_cell(pipeline: OpenPipeline, config: RunConfig, values: Values) -> dict[str, Artifact]:  # noqa: ARG001
    """Run the cell's settings once, and give the stages that it made or found."""
    run = pipeline(config)
    _ = run.policy
    return run.made


def run_share(pipeline: OpenPipeline, config: RunConfig, values: Values) -> dict[str, Artifact]:
    """Run the cell's settings with a base that sees the pairs that its oracle sees.

    That is so where the base learns the pairs' chosen responses and the policy does not start from it.
    """
    if config.policy_init == "model" and config.base.path is None and config.base.data == "chosen":
        config = with_settings(config, {"base": replace(config.base, **_share(values))})
    return run_cell(pipeline, config, values)


def _share(values: Values) -> dict[str, Any]:
    return {name: values[name] for name in ("fraction", "sample")}


def run_weak_to_strong(pipeline: OpenPipeline, config: RunConfig, values: Values) -> dict[str, Artifact]:
    """A base and an oracle of another model score the tokens, on which the run's own policy is then trained.

    The score is log pi_oracle - log pi_base of the small model; the policy starts from where it starts without it.
    """
    strong = pipeline(config)
    start = strong.base.path if config.policy_init == "base" else config.model
    path = oracle_model(values["oracle"], strong)
    bare = is_bare(path)  # a checkpoint brings its own tokenizer
    tokenizer = str(strong.data.directory / "tokenizer") if bare else None
    weak = pipeline(with_settings(config, {"model": path, "tokenizer": tokenizer, "policy_init": "base"}))
    ready = {"base": BaseConfig(path=weak.base.path), "oracle": OracleConfig(path=weak.oracle.path)}
    scored = with_settings(config, {"model": start, "policy_init": "model", **ready})
    return {"oracle": weak.made["oracle"]} | run_cell(pipeline, scored, values)


def check_oracle_model(name: str) -> None:
    """ConfigError for a model that is not there, or a width that the embedded architecture cannot have."""
    if name.isdigit():
        width = int(name)
        check(
            width > 0 and width % 8 == 0, "oracle_models", name, "a model, or a width that 8 divides", "usual 16 to 256"
        )
    else:
        resolve_source(name)


def oracle_model(name: str, run: Pipeline) -> str:
    """The model of an oracle: a directory, hub name or config.json; a number is the width of an embedded model."""
    if not name.isdigit():
        return name
    width = {"hidden_size": int(name), "intermediate_size": 2 * int(name)}
    content = toy_config(int(run.data.manifest["vocab_size"])) | width
    return str(run.run(ModelConfig(content=content)).directory / "config.json")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Stage):
    """A model's config.json."""

    name: str = "oracle_model"
    content: Mapping[str, Any]

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write config.json."""
        atomic_write(directory / "config.json", json.dumps(self.content, indent=2).encode())
        return {}


@dataclass(frozen=True)
class Study:
    """One question, as a grid of runs."""

    title: str
    methods: tuple[str, ...]  # --method: the first one, or another of these
    axes: tuple[Axis, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of every run, where the user gives no others
    excludes: tuple[str, ...] = ()  # settings that the study gives itself, beside those of its axes
    repeats: tuple[str, ...] = ("seed",)  # columns that the means and intervals go over
    run: Callable[[OpenPipeline, RunConfig, Values], dict[str, Artifact]] = run_cell
    keep: Callable[[Values], bool] = lambda values: True  # noqa: ARG005  (which points of the grid are runs)


SELECTING = ("sepo", "simpo", "dpo")  # methods that train on selected tokens; the first is the papers'
SELECTED = {"selection.chosen_ratio": 0.3, "selection.rejected_ratio": 0.3}

STUDIES = {
    "ratios": Study(
        "share of the chosen and of the rejected tokens that are trained on (SePO, Fig. 4)",
        SELECTING,
        (
            Axis("chosen_ratios", "chosen_ratio", "selection.chosen_ratio", (0.1, 0.3, 0.5, 0.7, 0.9), (0.1, 0.3, 0.9)),
            Axis(
                "rejected_ratios", "rejected_ratio", "selection.rejected_ratio", (0.1, 0.3, 0.5, 0.7, 0.9),
                (0.1, 0.3, 0.9),
            ),
        ),
    ),
    "oracle_data": Study(
        "share of the pairs that the oracle is trained on, mean of several samples (SePO, Fig. 5)",
        SELECTING,
        (
            Axis(
                "fractions", "fraction", "oracle.fraction", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
                (0.1, 0.4, 1.0),
            ),
            Axis("samples", "sample", "oracle.sample", (0, 1, 2), (0, 1, 2)),
        ),
        settings=SELECTED,
        excludes=("base.fraction", "base.sample"),
        repeats=("seed", "sample"),
        run=run_share,
        keep=lambda values: values["fraction"] < 1 or values["sample"] == 0,  # all pairs are one sample
    ),
    "oracle_size": Study(
        "size of the model that the oracle is trained from, and how its scores are distributed (SePO, Fig. 6)",
        SELECTING,
        (Axis("oracle_models", "oracle", None, ("16", "32", "64", "128", "256"), ("16", "64", "128"), True,
                   check_oracle_model),),
        settings=SELECTED,
        excludes=("oracle.path", "base.path"),
        run=run_weak_to_strong,
    ),
    "alpha_tgdpo": Study(
        "strength of the token-level guidance, training to convergence (TGDPO, Fig. 1 and Table 3)",
        ("tgdpo",),
        (Axis("alphas", "alpha", "loss.alpha", (0.0, 0.2, 0.5, 1.0, 2.0), (0.0, 0.5, 2.0)),),
        settings={"until_converged": 0.1, "num_train_epochs": 10.0},
    ),
    "alpha_treg": Study(
        "strength of the token-level regulariser; the largest is all but the regulariser alone (T-REG, Fig. 4)",
        ("dpo-reg", "simpo-reg"),
        (Axis("alphas", "alpha", "loss.alpha", (0.0, 0.1, 0.25, 0.5, 1.0, 10.0, 1000.0), (0.0, 0.1, 0.5, 10.0)),),
    ),
}  # fmt: skip


def check_method(study: Study, *methods: str) -> None:
    """ConfigError for a method that the study is not about."""
    for method in methods:
        known = f"one of {', '.join(study.methods)} in this study"
        check(method in study.methods, "method", method, known, "leave it out for the first of them")


def check_study(study: Study, config: RunConfig) -> None:
    """Check what a study asks of its runs, besides what each run asks of its settings.

    Raises:
        ConfigError: another method than the study's, nothing to compare the runs on, or `--check`.
    """
    check_method(study, config.method)
    held_out = config.data == EMBEDDED_DATA or config.eval_data is not None or config.eval_ratio > 0
    check(held_out, "eval_ratio", config.eval_ratio, "> 0 in a study without eval_data", "runs are compared on it")
    check(not config.check, "check", config.check, "false in a study", "check a single run: pyprefopt train --check")
