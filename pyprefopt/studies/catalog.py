"""The studies: what each one varies, and on which grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyprefopt.errors import check
from pyprefopt.losses import METHODS
from pyprefopt.modeling.checkpoints.load import toy_config
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.config import BaseConfig, OracleConfig, RunConfig
from pyprefopt.settings.resolve import with_settings
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.storage.hub import is_bare
from pyprefopt.studies.study import Axis, OpenPipeline, Study, Values, run_cell
from pyprefopt.studies.truncation import TruncationStudy


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
            Axis("samples", "sample", "oracle.sample", (0, 1, 2), (0, 1, 2), kind=int),
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
                   check_oracle_model, str),),
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
    "truncation": TruncationStudy(
        "share of each response that is trained on (shallow preference signals, Tables 1 to 4)",
        ("reward", *(name for name in METHODS if METHODS[name].trains_on == "pairs" and name != "reward")),
        (
            Axis("ratios", "ratio", "truncation.ratio", (1.0, 0.5, 0.4, 0.33, 0.25, 0.1), (1.0, 0.5, 0.1)),
            Axis("lengths", "length", "truncation.length", (), (), kind=int),
        ),
        settings={"on_error": "skip", "eval_truncation": ("none", "same")},
        excludes=("truncation.tokens",),
    ),
}  # fmt: skip
