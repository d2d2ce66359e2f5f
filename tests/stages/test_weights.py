"""User weights in whole runs: they reach the policy's loss, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pyprefopt
from pyprefopt import data
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.losses import DPO
from pyprefopt.pipeline.preflight import check_user_weights
from pyprefopt.pipeline.run import RunResult
from pyprefopt.pipeline.summary import format_table
from pyprefopt.stages.stage import Artifact
from tests.pipeline.runs import losses, small
from tests.stages.made import build_data

SIDES = ("chosen", "rejected")


def weighted(inputs: Path, target: Path, weight: float = 2.0) -> str:
    """The toy's training pairs with their planted spans weighted."""
    frame = pl.read_parquet(inputs / "train.parquet")
    named = pl.struct(pl.element().struct.field("start", "end"), weight=pl.lit(weight))
    spans = [pl.col(f"{side}_planted").list.eval(named).alias(f"{side}_weights") for side in SIDES]
    frame.with_columns(spans).write_parquet(target)
    return str(target)


def one_step(inputs: Path, out: Path, **settings) -> list[tuple[str, int, float]]:
    alone = {"base": {}, "oracle": {}, "policy_init": None, "max_steps": 2}
    pyprefopt.train(small(inputs, out, **alone | settings))
    return losses(out)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("method", ["dpo", pytest.param("simpo", marks=SLOW), pytest.param("sft", marks=SLOW)])
def test_weights_change_the_loss_and_ones_do_not(method: str, inputs: Path, tmp_path: Path) -> None:
    plain = one_step(inputs, tmp_path / "plain", method=method)
    ones = one_step(inputs, tmp_path / "ones", method=method, data=weighted(inputs, tmp_path / "1.parquet", 1.0))
    twos = one_step(inputs, tmp_path / "twos", method=method, data=weighted(inputs, tmp_path / "2.parquet"))
    assert ones == plain
    assert twos[-1] != plain[-1]  # the first loss of dpo is ln 2 whatever the weights


def test_the_planted_tokens_are_those_that_weigh_two(inputs: Path, tmp_path: Path) -> None:
    settings = {"truncation": {"ratio": 0.5, "cut_end": "eos"}}
    one_step(inputs, tmp_path, method="simpo", data=weighted(inputs, tmp_path / "2.parquet"), **settings)
    data = tmp_path / "stages/data"
    store = SegmentStore.open(data / "train")
    weights = ValueStore.open(data / "train_weights").check(store).values.to_pylist()
    planted = ValueStore.open(data / "train_planted").values.to_pylist()
    assert weights == [line and [2.0 if token else 1.0 for token in line] for line in planted]
    assert not (data / "eval_weights").exists()


def test_test_pairs_that_are_held_out_bring_their_weights(inputs: Path, tmp_path: Path) -> None:
    path = weighted(inputs, tmp_path / "2.parquet")
    settings = {"method": "simpo", "eval_data": None, "eval_ratio": 0.2}
    one_step(inputs, tmp_path, data=path, **settings)
    plain = tmp_path / "plain"
    one_step(inputs, plain, **settings)
    evaluations = []
    for folder in (tmp_path, plain):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluations.append(next(line for line in lines if "eval_loss" in line))
    ours, theirs = evaluations
    assert ours["eval_loss"] != theirs["eval_loss"]
    assert ours["eval_ranking_accuracy"] == theirs["eval_ranking_accuracy"]  # over all tokens, each counted once


def test_only_the_policy_is_made_again_for_other_weights(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    shutil.copytree(sepo.output_dir, tmp_path / "copy")
    made = []
    for weight in (2.0, 3.0):
        data = weighted(inputs, tmp_path / "pairs.parquet", weight)
        result = pyprefopt.train(small(inputs, tmp_path / "copy", data=data, overwrite=True))
        made.append({name for name, stage in result.summary["stages"].items() if not stage["reused"]})
    assert made == [{"data", "policy"}] * 2


def test_rows_with_bad_weights_are_bad_rows(inputs: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(inputs / "train.parquet")
    row = pl.int_range(pl.len())
    given = pl.when(row == 5).then(pl.lit([1.0, -1.0])).otherwise(pl.lit(None, pl.List(pl.Float64)))
    frame.with_columns(rejected_weights=given).write_parquet(tmp_path / "pairs.parquet")
    settings = {"method": "simpo", "data": str(tmp_path / "pairs.parquet")}
    with pytest.raises(DataError, match=r"pairs.parquet, row 5, rejected_weights: .*one weight for each of the 40"):
        one_step(inputs, tmp_path / "run", **settings)
    one_step(inputs, tmp_path / "run", **settings, on_error="skip")
    (rejected,) = [json.loads(line) for line in (tmp_path / "run/rejected.jsonl").read_text().splitlines()]
    assert (rejected["row"], rejected["reason"]) == (5, "bad_weights")
    assert SegmentStore.open(tmp_path / "run/stages/data/train").num_rows == 63


def test_a_prepared_folder_brings_its_weights(inputs: Path, tmp_path: Path) -> None:
    raw = weighted(inputs, tmp_path / "2.parquet")
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    data.prepare(raw, tokenizer, tmp_path / "folder", max_prompt_tokens=64, max_tokens=128, offsets=False)
    settings = {"eval_data": None, "eval_ratio": 0.2}
    for name, path in (("raw", raw), ("prepared", str(tmp_path / "folder"))):
        made = build_data(small(inputs, tmp_path / "run", data=path, **settings), tmp_path / name)
        assert set(made["weights"]) == {"train", "eval"}
    for split in ("train", "eval"):
        stores = [ValueStore.open(tmp_path / run / f"{split}_weights") for run in ("raw", "prepared")]
        assert stores[0].values.to_pylist() == stores[1].values.to_pylist()


def test_instructions_bring_their_weights_to_sft(inputs: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(inputs / "sft.parquet")
    found = []
    for weight in (1.0, 3.0):
        given = pl.lit([{"start": 0, "end": 9, "weight": weight}])
        frame.with_columns(response_weights=given).write_parquet(tmp_path / f"{weight}.parquet")
        base = {"data": str(tmp_path / f"{weight}.parquet")}
        found.append(one_step(inputs, tmp_path / f"run-{weight}", method="sft", base=base))
    assert found[0] != found[1]
    with pytest.raises(ConfigError, match=r"response_weights of base\.data .* are not used by method sepo"):
        build_data(small(inputs, tmp_path / "run", base=base), tmp_path / "stage")


def test_a_method_that_weighs_no_token_refuses_weights(tmp_path: Path) -> None:
    class Head:
        needs = frozenset({"reward_head"})

    manifest = {"key": "data", "weights": {"train": "hash"}}
    with pytest.raises(ConfigError, match=r"data brings weights of tokens \(train\), but Head scores whole responses"):
        check_user_weights(Head(), Artifact("data", tmp_path, manifest, reused=False))  # type: ignore[arg-type]
    check_user_weights(Head(), Artifact("data", tmp_path, {"key": "data", "weights": {}}, reused=False))  # type: ignore[arg-type]
    check_user_weights(DPO(), Artifact("data", tmp_path, manifest, reused=False))


def weightless(inputs: Path, target: Path, every: int) -> dict[str, Any]:
    """Settings: a span of weight 0 over the whole text of every so many pairs; cut responses have no turn end."""
    frame = pl.read_parquet(inputs / "train.parquet").with_row_index("number")
    whole = [
        pl.concat_list(
            pl.struct(
                start=pl.lit(0, pl.Int64),
                end=pl.col(side).str.len_chars().cast(pl.Int64),
                weight=(pl.col("number") % every > 0).cast(pl.Float64),
            )
        ).alias(f"{side}_weights")
        for side in SIDES
    ]
    frame.with_columns(whole).drop("number").write_parquet(target)
    return {
        "base": {}, "oracle": {}, "policy_init": None, "max_steps": 2, "method": "dpo", "data": str(target),
        "truncation": {"ratio": 0.5, "cut_end": "none"},
    }  # fmt: skip


def test_pairs_without_a_weight_are_counted_and_reported(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = weightless(inputs, tmp_path / "data.parquet", every=3)
    result = pyprefopt.train(small(inputs, tmp_path / "out", **settings))
    rows = pl.read_parquet(tmp_path / "data.parquet").height
    expected = -(-rows // 3)
    assert f"policy: {expected} of {rows} rows have no token with a weight" in caplog.text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["stages"]["policy"]["weightless"] == expected
    assert "rows without a weighted token" in format_table(summary)
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if line["stage"] == "policy" and "loss" in line]
    assert 0 < steps[-1]["num_weightless"] < rows
    assert steps[-1]["entropy"] > 0
    assert result is not None


@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_pairs_of_which_none_has_a_weight_are_refused(method: str, inputs: Path, tmp_path: Path) -> None:
    settings = weightless(inputs, tmp_path / "data.parquet", every=1)
    with pytest.raises(
        DataError, match=r"policy: none of the 64 training rows \(0, 1, 2, …\) has a token.*; give .* leave these col"
    ):
        pyprefopt.train(small(inputs, tmp_path / "out", **settings | {"method": method}))
    assert not (tmp_path / "out" / "policy").exists()
