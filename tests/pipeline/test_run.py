"""Whole runs on the toy set in small: what they leave behind, that nothing is done twice, that kills change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

import pyprefopt
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.pipeline.run import RunResult
from pyprefopt.settings.resolve import load_config
from tests.pipeline.runs import digest, losses, small, train
from tests.training.ranks import run_ranks


def test_what_a_run_leaves_behind(sepo: RunResult) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(sepo.policy)
    tokenizer = AutoTokenizer.from_pretrained(sepo.policy)
    assert torch.isfinite(model(**tokenizer("cat says meow", return_tensors="pt")).logits).all()
    assert json.loads((sepo.output_dir / "summary.json").read_text()) == json.loads(json.dumps(sepo.summary))
    assert set(sepo.summary["stages"]) == {
        "data", "base", "base_logps", "oracle", "oracle_logps", "scores", "selection", "policy",
    }  # fmt: skip
    assert list((sepo.output_dir / "tensorboard").rglob("events.*"))
    names = {name for line in (sepo.output_dir / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    pairs = {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    }
    both = pairs | {"loss"}
    assert names >= both | {f"eval_{name}" for name in both} | {
        "grad_norm", "learning_rate", "num_tokens", "num_scored_tokens", "eval_ranking_accuracy",
    }  # fmt: skip


def test_step_zero_of_the_oracle_is_ln_2(sepo: RunResult) -> None:
    first = next(loss for stage, step, loss in losses(sepo.output_dir) if (stage, step) == ("oracle", 1))
    assert first == pytest.approx(np.log(2), abs=1e-6)
    oracle = sepo.summary["stages"]["oracle"]["eval_before"]
    assert oracle["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_scores_and_selection_are_what_they_say(sepo: RunResult) -> None:
    stages = sepo.output_dir / "stages"
    store = SegmentStore.open(stages / "data" / "train")
    selected = ValueStore.open(stages / "selection" / "train").values.to_pylist()
    scores = ValueStore.open(stages / "scores" / "train").values.to_pylist()
    masks, kinds = store.table["mask"].to_pylist(), store.table["kind"].to_pylist()
    for kind, mask, score, marks in zip(kinds, masks, scores, selected, strict=True):
        if kind == "prompt":
            continue
        assert sum(marks) == max(1, int(np.floor(0.3 * sum(mask) + 0.5)))
        kept = [s for s, m in zip(score, marks, strict=True) if m]
        left = [s for s, m, own in zip(score, marks, mask, strict=True) if own and not m]
        assert min(kept) >= max(left) if kind == "chosen" else max(kept) <= min(left)
    share = sepo.summary["stages"]["selection"]["chosen"]["selected_share"]
    assert share == pytest.approx(0.3, abs=0.02)


def test_the_same_run_again_does_nothing(sepo: RunResult) -> None:
    before = digest(sepo.output_dir), (sepo.output_dir / "metrics.jsonl").read_bytes()
    again = pyprefopt.train(load_config(str(sepo.output_dir / "config.yaml")))
    assert all(stage["reused"] for stage in again.summary["stages"].values())
    assert before == (digest(sepo.output_dir), (sepo.output_dir / "metrics.jsonl").read_bytes())


def test_a_new_setting_runs_only_what_depends_on_it(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    shutil.copytree(sepo.output_dir, tmp_path / "copy")
    again = pyprefopt.train(small(inputs, tmp_path / "copy", loss={"reward_scale": 2.0}, overwrite=True))
    assert not load_config(str(tmp_path / "copy" / "config.yaml")).overwrite
    made = {name for name, stage in again.summary["stages"].items() if not stage["reused"]}
    assert made == {"policy"}


KILLS = [
    ("pyprefopt.training.engine", "Engine.step", 3),  # in the base
    ("pyprefopt.training.checkpoint", "Checkpoint.finish", 1),  # while saving a checkpoint of the base
    ("pyprefopt.data.store.segments", "scatter_values", 2),  # while storing log-probs
    ("pyprefopt.training.engine", "Engine.step", 7),  # in the policy, after the oracle
    ("pyprefopt.stages.training", "model_hash", 1),  # the policy is saved, its manifest is not
]


def test_killed_anywhere_ends_with_the_same_policy(inputs: Path, tmp_path: Path) -> None:
    assert run_ranks(1, train, str(inputs), str(tmp_path / "whole")) == [0]
    for die in KILLS:
        assert run_ranks(1, train, str(inputs), str(tmp_path / "killed"), die) == [-9], die
    assert run_ranks(1, train, str(inputs), str(tmp_path / "killed")) == [0]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_two_ranks_follow_one(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    assert run_ranks(
        2, train, str(inputs), str(tmp_path / "two"), ("pyprefopt.training.engine", "Engine.step", 10)
    ) != [
        0,
        0,
    ]
    assert run_ranks(2, train, str(inputs), str(tmp_path / "two")) == [0, 0]
    for ours, theirs in zip(losses(tmp_path / "two"), losses(sepo.output_dir), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], abs=1e-5)


@pytest.mark.parametrize("method", ["dpo", "simpo", "sft"])
def test_other_methods_use_the_same_trainer(method: str, inputs: Path, tmp_path: Path) -> None:
    result = pyprefopt.train(small(inputs, tmp_path, method=method, max_steps=3, base={}, oracle={}, policy_init=None))
    assert {"dpo": {"data", "ref_logps", "policy"}}.get(method, {"data", "policy"}) == set(result.summary["stages"])
    assert result.summary["stages"]["policy"]["steps"] == 3


def test_ready_checkpoints_replace_their_stages(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    stages = sepo.output_dir / "stages"
    ready = {"base": {"path": str(stages / "base/model")}, "oracle": {"path": str(stages / "oracle/model")}}
    result = pyprefopt.train(small(inputs, tmp_path, **ready, max_steps=1))
    assert {"base", "oracle"}.isdisjoint(result.summary["stages"])
    assert result.summary["stages"]["selection"] | {"seconds": 0, "peak_memory_bytes": 0, "reused": False} == (
        sepo.summary["stages"]["selection"] | {"seconds": 0, "peak_memory_bytes": 0, "reused": False}
    )


def test_selection_by_chance_trains_no_oracle(inputs: Path, tmp_path: Path) -> None:
    result = pyprefopt.train(small(inputs, tmp_path, selection={"method": "random"}, oracle={}, max_steps=1))
    assert set(result.summary["stages"]) == {"data", "base", "selection", "policy"}
    share = result.summary["stages"]["selection"]["rejected"]["selected_share"]
    assert share == pytest.approx(0.3, abs=0.02)


def test_selection_by_threshold_of_cut_pairs(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    """Pairs cut to half of the shorter response, with EOS after the cut; tokens whose score has the wanted sign."""
    ready = sepo.output_dir / "stages"
    settings = {
        "selection": {"method": "threshold", "chosen_threshold": 0.0, "rejected_threshold": 0.0},
        "truncation": {"ratio": 0.5, "ratio_base": "shared_min", "cut_end": "eos"},
        "base": {"path": str(ready / "base/model")},
        "oracle": {"path": str(ready / "oracle/model")},
        "loss": {"normalizer": "selected"},
    }
    pyprefopt.train(small(inputs, tmp_path, **settings, max_steps=1))
    store = SegmentStore.open(tmp_path / "stages" / "data" / "train")
    selected = ValueStore.open(tmp_path / "stages" / "selection" / "train").values
    scores = ValueStore.open(tmp_path / "stages" / "scores" / "train").values
    frame = pl.DataFrame(store.table).with_columns(selected=pl.Series(selected), scores=pl.Series(scores))
    whole = pl.DataFrame(SegmentStore.open(ready / "data" / "train").table).filter(segment=1)
    chosen = frame.filter(segment=1)
    assert chosen["cut"].sum() > 0
    assert chosen["ids"].list.last().to_list() == whole["ids"].list.last().to_list()  # the EOS that the template writes
    assert chosen["ids"].list.len().sum() < whole["ids"].list.len().sum()
    for line in frame.filter(pl.col("segment") > 0).to_dicts():
        sign = 1 if line["kind"] == "chosen" else -1
        wanted = [m and sign * s >= 0 for s, m in zip(line["scores"], line["mask"], strict=True)]
        assert line["selected"] == wanted or sum(line["selected"]) == 1


def test_a_base_of_another_vocabulary_is_refused(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (sepo.output_dir / "stages/base/model").iterdir():
        text = file.read_bytes()
        (base / file.name).write_bytes(text.replace(b'"meow"', b'"moew"') if file.name == "tokenizer.json" else text)
    with pytest.raises(ConfigError, match=r"base\.path must be a model with the policy's vocabulary.*meow"):
        pyprefopt.train(small(inputs, tmp_path / "run", base={"path": str(base)}))


def test_bad_rows_stop_the_run_or_are_left_out(inputs: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(inputs / "train.parquet")
    chosen = pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("")).otherwise(pl.col("chosen")).alias("chosen")
    same = pl.when(pl.int_range(pl.len()) == 7).then(pl.col("chosen")).otherwise(pl.col("rejected")).alias("rejected")
    data = tmp_path / "pairs.parquet"
    frame.with_columns(chosen, same).write_parquet(data)
    with pytest.raises(DataError) as caught:
        pyprefopt.train(small(inputs, tmp_path / "raise", data=str(data), max_steps=1))
    message = str(caught.value)
    assert "2 of 96 rows cannot be used" in message
    for words in ("pairs.parquet, row 5, chosen", "pairs.parquet, row 7", "on_error='skip'"):
        assert words in message
    result = pyprefopt.train(
        small(inputs, tmp_path / "skip", data=str(data), on_error="skip", method="simpo", policy_init=None, base={},
              oracle={}, max_steps=1)
    )  # fmt: skip
    facts = result.summary["stages"]["data"]
    assert (facts["rows_in"], facts["rows_used"], facts["rows_rejected"]) == (96, 94, 2)
    rejected = [json.loads(line) for line in (tmp_path / "skip" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["row"], row["reason"]) for row in rejected] == [(5, "empty_response"), (7, "identical_pair")]
    settings = yaml.safe_load((tmp_path / "skip" / "config.yaml").read_text())
    assert settings["on_error"] == "skip"
