"""What an oracle starts from and is read against, what it sees, and how healthy it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyprefopt
from pyprefopt.errors import ConfigError
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.summary import format_table
from pyprefopt.settings.config import BaseConfig, RunConfig
from pyprefopt.settings.resolve import configure, load_config, to_yaml
from pyprefopt.settings.rules import oracle_starts_from
from pyprefopt.stages.scores import flat_values
from pyprefopt.stages.training import draw
from pyprefopt.studies.catalog import run_share
from tests.pipeline.runs import FAST, MODEL, small

OWN = {"model": "model", "data": "pairs.jsonl"}
REWARDED = ["tgdpo", "dpo-reg", "simpo-reg", "tis-dpo"]  # their losses read token rewards
GIVEN: dict[str, Any] = {"policy_init": "model", "base": {}, "max_steps": 2}


def pipeline(inputs: Path, output_dir: Path, **settings: Any) -> Pipeline:
    return Pipeline(small(inputs, output_dir, **GIVEN | settings))


@pytest.mark.parametrize("name", ["dpo", "simpo"])
@pytest.mark.parametrize("method", REWARDED)
def test_token_rewards_are_taken_against_the_model(method: str, name: str) -> None:
    given = {"method": method, "rewards": {"name": name}}
    config = configure(**given, **OWN)
    assert (config.base, oracle_starts_from(config)) == (BaseConfig(), "model")
    for asked in ({"base": {"path": "base"}}, {"base": {"learning_rate": 1e-6}}, {"policy_init": "base"}):
        assert oracle_starts_from(configure(**given, **OWN, **asked)) == "base"
    assert oracle_starts_from(configure(**given)) == "base"  # the embedded run
    assert oracle_starts_from(configure(method="sepo", rewards={"name": name}, **OWN)) == "base"  # SePO has its base


def test_the_oracle_starts_from_the_model_where_the_loss_reads_its_rewards(inputs: Path, tmp_path: Path) -> None:
    result = pyprefopt.train(small(inputs, tmp_path, **GIVEN | {"method": "tgdpo"}))
    assert set(result.summary["stages"]) == {
        "data", "oracle", "base_logps", "oracle_logps", "rewards", "ref_logps", "policy",
    }  # fmt: skip
    run = pipeline(inputs, tmp_path, method="tgdpo")
    run.policy  # noqa: B018
    made = run.made
    assert all(artifact.reused for artifact in made.values())
    assert made["oracle"].reads["start"] == made["policy"].reads["start"]
    assert made["base_logps"].directory == made["ref_logps"].directory  # one model, scored once
    ours, oracle, reference = (
        flat_values(made[name].directory / "train") for name in ("rewards", "oracle_logps", "ref_logps")
    )
    np.testing.assert_allclose(ours, 0.5 * (oracle - reference), atol=1e-6)


def test_a_check_looks_at_the_same_stages(inputs: Path, tmp_path: Path) -> None:
    result = pyprefopt.train(small(inputs, tmp_path / "run", **GIVEN | {"method": "tgdpo", "check": True}))
    assert "base" not in result.summary["stages"]
    assert {"oracle", "base_logps", "rewards"} <= set(result.summary["stages"])


def test_a_written_run_is_the_same_again(tmp_path: Path) -> None:
    config = configure(method="tgdpo", **OWN)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


# --- a ready oracle -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An oracle that was trained from the run's model."""
    return Path(pipeline(inputs, tmp_path_factory.mktemp("ready"), method="tgdpo").oracle.path)


@pytest.mark.parametrize("method", ["sepo", "tgdpo"])
def test_a_ready_oracle_without_a_base_is_read_against_the_model(
    method: str, inputs: Path, ready: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"method": method, "oracle": {"path": str(ready)}}
    if method == "tgdpo":
        settings["rewards"] = {"name": "dpo", "beta": 1.0}
    run = pipeline(inputs, tmp_path, **settings)
    with caplog.at_level(logging.INFO, "pyprefopt"):
        stage = run.scores if method == "sepo" else run.rewards
    assert f"scored by oracle.path {ready} against model {run.config.model}" in caplog.text
    assert "base" not in run.made
    assert stage is not None
    values, oracle = (flat_values(a.directory / "train") for a in (stage, run.made["oracle_logps"]))
    start = flat_values(run.logps_of("start", run.start).directory / "train")
    np.testing.assert_allclose(values, oracle - start, atol=1e-6)


@pytest.mark.parametrize("asked", [{"policy_init": "base"}, {"base": {"learning_rate": 1e-6}}])
def test_a_ready_oracle_is_not_read_against_a_base_that_is_trained_here(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"oracle\.path names a ready oracle, .* set base\.path to the model that"):
        configure(method="sepo", **OWN, oracle={"path": "oracle"}, **asked)
    with pytest.raises(ConfigError, match=r"oracle\.path names a ready oracle"):
        configure(method="sepo", oracle={"path": "oracle"})  # the embedded run trains its base
    configure(method="sepo", **OWN, oracle={"path": "oracle"}, base={"path": "base"})


def test_an_oracle_of_another_architecture_needs_its_base(inputs: Path, ready: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger.json"
    larger.write_text(json.dumps({**MODEL, "hidden_size": 64}))
    run = pipeline(inputs, tmp_path / "run", model=str(larger), oracle={"path": str(ready)})
    message = (
        r"oracle\.path .* \(llama, hidden_size 32, num_hidden_layers 1\) was not trained from model .*hidden_size 64"
    )
    with pytest.raises(ConfigError, match=message):
        _ = run.data
    base = {"path": str(inputs / "config.json")}
    _ = pipeline(inputs, tmp_path / "run", model=str(larger), oracle={"path": str(ready)}, base=base).scores


# --- what the base sees -------------------------------------------------------------------------------------------


def rows_of(run: Pipeline, name: str) -> list[int]:
    """The rows that a training drew of the pairs."""
    reads, rows = run.made[name].reads, run.data.facts["train"]["rows"]
    return draw(rows, reads["fraction"], reads["seed"], reads["sample"]).tolist()


def test_base_and_oracle_of_one_share_see_the_same_pairs(inputs: Path, tmp_path: Path) -> None:
    share = {"fraction": 0.25, "sample": 1}
    run = pipeline(inputs, tmp_path, base={**FAST, **share}, oracle={**FAST, **share}, max_steps=-1)
    _ = run.oracle
    assert rows_of(run, "base") == rows_of(run, "oracle")
    assert len(rows_of(run, "base")) == 16
    assert run.made["base"].facts["steps"] == 1  # 16 pairs of a batch of 16
    with pytest.raises(ConfigError, match=r"base\.fraction must be in \(0, 1\], got 0"):
        configure(method="sepo", base={"fraction": 0.0}, **OWN)
    with pytest.raises(ConfigError, match=r"\(base\.sample\) says which share of the pairs"):
        configure(method="sepo", base={"sample": 1}, **OWN)


def test_the_base_of_the_study_sees_what_its_oracle_sees(inputs: Path, tmp_path: Path) -> None:
    seen: list[RunConfig] = []

    class Stopped(Pipeline):
        @property
        def policy(self) -> Any:  # type: ignore[override]
            seen.append(self.config)

    for policy_init, given, share in (
        ("model", {}, (0.5, 2)), ("base", {}, (1.0, 0)), ("model", {"data": str(inputs / "sft.parquet")}, (1.0, 0)),
    ):  # fmt: skip
        config = small(inputs, tmp_path, policy_init=policy_init, base={**FAST, **given})
        run_share(Stopped, config, {"fraction": 0.5, "sample": 2})
        assert (seen[-1].base.fraction, seen[-1].base.sample) == share


def test_the_base_may_sum_over_tokens(inputs: Path, tmp_path: Path) -> None:
    """SePO, Eq. 23: of one batch the two losses differ by the mean number of tokens."""
    losses = {}
    for name in ("token", "sequence"):
        base = {**FAST, "max_steps": 1, "loss": {"normalization": name}}
        run = pipeline(inputs, tmp_path / name, base=base, global_batch_size=64)
        _ = run.base
        losses[name] = run.made["base"].facts["train_loss"][0]
        assert run.made["base"].reads["method"]["normalization"] == name
    assert losses["sequence"] > 10 * losses["token"]
    with pytest.raises(ConfigError, match=r"base\.loss\.normalization must be"):
        configure(method="sepo", base={"loss": {"normalization": "mean"}}, **OWN)


# --- the oracle's health ------------------------------------------------------------------------------------------


def health(run: Pipeline) -> dict[str, float]:
    """The mean score of a side's own tokens, from the models' log-probs."""
    from pyprefopt.data.store.segments import SegmentStore
    from pyprefopt.stages.scores import response_sides

    store = SegmentStore.open(run.data.directory / "train")
    logps = {
        name: run.logps_of(f"{name}_logps", source) for name, source in (("oracle", run.oracle), ("start", run.start))
    }
    scores = np.subtract(*(flat_values(logps[name].directory / "train") for name in ("oracle", "start")))
    return {side: float(scores[own].mean()) for side, own in response_sides(store).items()}


PROMPTS = {"better": "{conversation} says meow {answer} {start}", "worse": "{conversation} says woof {answer} {start}"}


@pytest.mark.parametrize("name", ["dpo", "simpo", "length_norm", "contrastive"])
def test_every_trained_oracle_is_looked_at(
    name: str, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewards: dict[str, Any] = {"name": name}
    if name == "length_norm":
        rewards = {"name": "simpo", "form": name}
    if name == "contrastive":
        rewards |= {"model": "oracle", "max_tokens": 512}
        for direction, text in PROMPTS.items():
            (tmp_path / direction).write_text(text)
            rewards[f"{direction}_prompt"] = str(tmp_path / direction)
    model = tmp_path / "config.json"
    model.write_text(json.dumps({**MODEL, "max_position_embeddings": 512}))
    oracle = {**FAST, "learning_rate": 1e-2}
    run = pipeline(inputs, tmp_path / "run", method="tgdpo", model=str(model), rewards=rewards, oracle=oracle)
    artifact = run.rewards
    assert artifact is not None
    expected = health(run)
    for side, value in expected.items():
        assert artifact.facts[side]["mean_score"] == pytest.approx(value, abs=1e-6)
        assert "mean_reward" in artifact.facts[side]
    assert ("the oracle lowers its chosen responses too" in caplog.text) == (expected["chosen"] < 0)


def test_rewards_without_an_oracle_have_no_health(inputs: Path, tmp_path: Path) -> None:
    run = pipeline(inputs, tmp_path, method="tgdpo", rewards={"name": "random"}, oracle={})
    artifact = run.rewards
    assert artifact is not None
    assert set(artifact.facts["chosen"]) == {"mean_reward", "std_reward"}
    assert set(run.made) == {"data", "rewards"}


def test_an_oracle_that_lowers_its_chosen_responses_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    from types import SimpleNamespace

    from pyprefopt.stages.scores import oracle_health

    store: Any = SimpleNamespace(
        kinds=np.array([0, 1, 2]), response_offsets=np.array([0, 0, 2, 4]), response_mask=np.array([True] * 4)
    )
    facts = oracle_health(store, np.array([-0.5, 0.25, -1.0, -2.0]), scale="rewards.beta")
    assert facts == {"chosen": {"mean_score": -0.125}, "rejected": {"mean_score": -1.5}}
    assert "(mean token score -0.125)" in caplog.text
    assert caplog.messages[0].endswith("or raise rewards.beta")


def test_the_table_shows_the_health_beside_the_rewards(inputs: Path, tmp_path: Path) -> None:
    result = pyprefopt.train(small(inputs, tmp_path, **GIVEN | {"method": "tgdpo"}))
    table = format_table(result.summary)
    facts = result.summary["stages"]["rewards"]
    assert "token rewards" in table
    for fact, title in (("mean_score", "mean oracle score of a token"), ("mean_reward", "mean reward of a token")):
        (line,) = [line for line in table.splitlines() if line.startswith(title)]
        assert line.split()[-2:] == [f"{facts[side][fact]:+.3f}" for side in ("chosen", "rejected")]
