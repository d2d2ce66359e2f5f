"""The study of truncation: a grid of runs on the beginning of responses, and the same runs one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pyprefopt
from pyprefopt import cli
from pyprefopt.cli.study import read
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.stages.stage import Artifact
from pyprefopt.studies.catalog import STUDIES
from pyprefopt.studies.run import StudyResult, format_summary, run_study
from pyprefopt.studies.study import Cell
from pyprefopt.studies.truncation import accuracy_table
from tests.pipeline.runs import losses, small

STUDY = STUDIES["truncation"]
BOTH = ("none", "same")
BASE: dict[str, Any] = {"base": {"max_steps": 2, "learning_rate": 1e-3, "global_batch_size": 16}, "oracle": {}}
FAST: dict[str, Any] = {"eval_truncation": BOTH, "max_steps": 4, **BASE}


def config_of(inputs: Path, folder: Path, method: str, **settings: Any) -> Any:
    cut = {"ratio": 1.0} | settings.pop("truncation", {})
    return small(inputs, folder, method=method, truncation=cut, **FAST | settings)


@pytest.fixture(scope="module")
def study(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Not to be changed."""
    config = config_of(inputs, tmp_path_factory.mktemp("study"), "dpo", on_error="skip")
    values = {"ratios": [1.0, 0.3], "lengths": [1]}
    return run_study("truncation", config, values=values, seeds=[0, 1], options={"common_pairs": True})


@pytest.mark.parametrize("method", ["dpo", "reward", "simpo"])
@pytest.mark.parametrize("unit", ["tokens", "characters"])
def test_ratio_1_is_the_run_without_truncation(method: str, unit: str, inputs: Path, tmp_path: Path) -> None:
    plain = pyprefopt.train(small(inputs, tmp_path / "plain", method=method, max_steps=4, **BASE))
    floor = {"rounding": "floor", "cut_end": "template"} if unit == "characters" else {}
    cut = pyprefopt.train(config_of(inputs, tmp_path / "cut", method, truncation={"unit": unit} | floor))
    assert len(losses(tmp_path / "plain")) >= 4
    assert losses(tmp_path / "cut") == losses(tmp_path / "plain")
    before, after = (run.summary["stages"]["policy"]["eval_after"] for run in (plain, cut))
    assert {name: after[name] for name in before} == before
    assert {name: after[name.replace("eval_", "eval_cut_", 1)] for name in before} == before


def test_a_cell_is_the_run_that_train_makes(study: StudyResult, inputs: Path, tmp_path: Path) -> None:
    alone = pyprefopt.train(config_of(inputs, tmp_path, "dpo", truncation={"ratio": 0.3}, on_error="skip"))
    point = study.cells.row(1, named=True)
    assert (point["seed"], point["ratio"], point["length"]) == (0, 0.3, None)
    after = alone.summary["stages"]["policy"]["eval_after"]
    for column, metric in (
        ("reward_accuracy", "eval_rewards/accuracies"), ("reward_accuracy_cut", "eval_cut_rewards/accuracies"),
        ("reward_margin_cut", "eval_cut_rewards/margins"), ("ranking_accuracy_cut", "eval_cut_ranking_accuracy"),
    ):  # fmt: skip
        assert point[column] == after[metric]
    assert point["reward_margin"] != point["reward_margin_cut"]


def test_cells_are_ratios_and_then_lengths(study: StudyResult) -> None:
    points = study.cells.select("seed", "ratio", "length").rows()
    assert points == [(seed, *point) for seed in (0, 1) for point in ((1.0, None), (0.3, None), (None, 1))]
    counts = study.cells.filter(seed=0).select("train_pairs", "train_pairs_equal", "test_pairs_equal", "steps")
    assert counts.row(0) == (64, 0, 0, 4)
    for line in counts.iter_rows(named=True):
        assert line["train_pairs"] + line["train_pairs_equal"] == 64
    assert counts["test_pairs_equal"][2] > 0
    assert (study.output_dir / "truncation.png").read_bytes().startswith(b"\x89PNG")
    written = pl.read_csv(study.output_dir / "accuracy.csv")
    assert written.columns == study.further["accuracy"].columns
    assert written.height == 3 * 2 * 2


def test_accuracies_are_those_of_the_runs(study: StudyResult) -> None:
    table = study.further["accuracy"]
    for ratio, length in ((1.0, None), (0.3, None), (None, 1)):
        own = study.cells.filter(pl.col("ratio").eq_missing(ratio), pl.col("length").eq_missing(length))
        line = table.filter(
            pl.col("ratio").eq_missing(ratio), pl.col("length").eq_missing(length), test="whole", pairs_of="all"
        ).row(0, named=True)
        assert line["pairs"] == 2 * 32
        assert line["accuracy"] == pytest.approx(own["reward_accuracy"].mean() + line["ties"] / line["pairs"] / 2)
        assert line["mean_margin"] == pytest.approx(own["reward_margin"].mean())
        assert line["low"] <= line["accuracy"] <= line["high"]
    full = table.filter(ratio=1.0, pairs_of="all")
    assert full.select("change", "change_low", "change_high").rows() == [(0, 0, 0)] * 2
    left = 32 - int(study.cells["test_pairs_equal"][2])
    assert table.filter(pairs_of="common")["pairs"].unique().to_list() == [2 * left]
    cut = table.filter(test="cut", pairs_of="all")
    assert cut["pairs"].to_list() == [64, 64 - 2 * int(study.cells["test_pairs_equal"][1]), 2 * left]
    assert "accuracy\n| ratio" in format_summary(study)


def made(folder: Path, seed: int, ratio: float, rows: dict[int, float], prompts: dict[int, int]) -> Cell:
    """A cell whose test pairs have these margins, by row."""
    lines = [
        {"row": row, "segment": segment, "kind": kind, "ids": [prompts[row]], "mask": [segment > 0]}
        for row in sorted(rows) for segment, kind in enumerate(("prompt", "chosen", "rejected"))
    ]  # fmt: skip
    types = {"row": pl.UInt64, "segment": pl.UInt16, "ids": pl.List(pl.UInt32)}
    SegmentStore.write(pl.DataFrame(lines, schema_overrides=types), folder / "data" / "eval")
    (folder / "policy").mkdir()
    table = pl.DataFrame({"split": "eval", "row": sorted(rows), "reward_margin": [rows[row] for row in sorted(rows)]})
    table.with_columns(pl.col("row").cast(pl.UInt64)).write_parquet(folder / "policy" / "test_pairs.parquet")
    stages = {name: Artifact(name, folder / name, {"key": name}, reused=False) for name in ("data", "policy")}
    return Cell({"seed": seed, "ratio": ratio, "length": None}, stages, {})


def test_the_accuracy_table_by_hand(tmp_path: Path) -> None:
    prompts = {0: 7, 1: 7, 2: 8, 3: 9}
    cells = [
        made(tmp_path / "a", 0, 1.0, {0: 1.0, 1: -1.0, 2: 0.0, 3: 2.0}, prompts),
        made(tmp_path / "b", 0, 0.5, {0: 1.0, 1: 1.0, 3: -2.0}, prompts),
        made(tmp_path / "c", 1, 1.0, {2: 3.0}, prompts),  # another seed holds out another row
    ]
    full, half = accuracy_table(cells).iter_rows(named=True)
    assert (full["accuracy"], full["ties"], full["pairs"], full["mean_margin"]) == ((1 + 0 + 0.5 + 1 + 1) / 5, 1, 5, 1)
    assert (half["accuracy"], half["pairs"]) == (2 / 3, 3)
    assert half["change"] == pytest.approx(((1 - 1) + (1 - 0) + (0 - 1)) / 3)  # rows 0, 1 and 3, of one seed
    # Of prompts 7 (rows 0 and 1: 0 and 1) and 9 (row 3: -1), drawn twice: both of 9, one of each, both of 7.
    assert (half["change_low"], half["change_high"]) == (-1, 0.5)
    # Three prompts of sums 1, .5 + 1 and 1 over 2, 2 and 1 pairs; the interval is that of the 27 draws of three.
    sums, counts = np.array([1.0, 1.5, 1.0]), np.array([2, 2, 1])
    draws = np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T
    means = np.sort([sums[draw].sum() / counts[draw].sum() for draw in draws])
    assert full["low"] == pytest.approx(np.quantile(means, 0.025, method="inverted_cdf"))
    assert full["high"] == pytest.approx(np.quantile(means, 0.975, method="inverted_cdf"))
    alone = accuracy_table(cells[1:2]).row(0, named=True)
    assert (alone["change"], alone["change_low"], alone["change_high"]) == (None, None, None)


def test_common_pairs_are_none_where_a_cut_leaves_none(inputs: Path, tmp_path: Path) -> None:
    test = pl.DataFrame({"prompt": ["cow", "cat"], "chosen": ["says moo", "says meow"], "rejected": ["says low"] * 2})
    test.write_parquet(tmp_path / "test.parquet")
    for values, places in (({"ratios": [1.0], "lengths": [1]}, 3), ({"ratios": [0.01]}, 1)):
        folder = tmp_path / str(places)
        config = config_of(
            inputs, folder, "dpo", on_error="skip", eval_data=str(tmp_path / "test.parquet"), max_steps=1
        )
        table = run_study("truncation", config, values=values, options={"common_pairs": True}).further["accuracy"]
        assert table.height == 2 * places
        common = table.filter(pairs_of="common")
        assert set(common["pairs"]) == {0}
        assert common["accuracy"].null_count() == common.height
        assert table.filter(pairs_of="all", test="whole")["pairs"].unique().to_list() == [2]


def test_presets_are_settings_of_the_runs(tmp_path: Path) -> None:
    code, own = read("truncation", STUDY, ["--as", "code", "--lengths", "5", "--common_pairs"])
    assert own["options"] == {"as": "code", "common_pairs": True}
    assert (code.method, code.on_error, code.eval_truncation) == ("reward", "skip", BOTH)
    wanted = ("characters", "floor", "template")
    assert (code.truncation.unit, code.truncation.rounding, code.truncation.cut_end) == wanted
    paper, _ = read("truncation", STUDY, ["--as", "paper", "--method", "dpo", "--eval_truncation", "none"])
    assert (paper.truncation.unit, paper.truncation.rounding, paper.truncation.cut_end) == ("tokens", "ceil", "none")
    assert (paper.method, paper.eval_truncation) == ("dpo", ("none",))
    words, _ = read("truncation", STUDY, ["--unit", "words", "--truncation.cut_end", "template"])
    assert (words.truncation.unit, words.truncation.cut_end) == ("words", "template")
    cells = STUDY.grid(code, {"lengths": [5]}, quick=True, seeds=[0])
    assert [(cell["ratio"], cell["length"]) for cell in cells] == [(1.0, None), (0.5, None), (0.1, None), (None, 5)]
    assert STUDY.settings_at(cells[-1])["truncation.rounding"] == "ceil"  # nothing of a length is rounded


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--as", "code", "--unit", "tokens"], "unit must be characters with as code; leave one of them out"),
        (
            ["--as", "code", "--truncation.cut_end", "none"],
            "truncation.cut_end must be template with --as code, got none; leave one of them out",
        ),
        (
            ["--unit", "words", "--truncation.unit", "characters"],
            "truncation.unit must be words with --unit words, got characters",
        ),
        (["--truncation.ratio", "0.5"], "truncation.ratio is what study truncation varies; .*--ratios"),
        (["--truncation.length", "5"], "truncation.length is what study truncation varies; .*--lengths"),
        (["--truncation.tokens", "5"], "truncation.tokens does not apply to study truncation"),
        (["--method", "rrhf"], "method must be one of reward, "),
        (["--eval_truncation", "same"], "eval_truncation must be none, or none same, got 'same'"),
        (["--eval_truncation", "none", "--common_pairs"], "common_pairs must be left out with eval_truncation none"),
        (["--ratios", "0"], r"ratio must be in \(0, 1\], got 0"),
        (["--lengths", "2.5"], "lengths .*2.5"),
        (["--as", "cod"], "as must be .*code.*'cod'"),
    ],
)
def test_what_the_study_cannot_do_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    def run() -> None:
        config, own = read("truncation", STUDY, [*words, "--output_dir", str(tmp_path / "out")])
        run_study("truncation", config, **own)

    with pytest.raises(ConfigError, match=said):
        run()
    assert not (tmp_path / "out").exists()


def test_rewardbench_of_every_cell(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = pl.read_parquet(inputs / "test.parquet", columns=["prompt", "chosen", "rejected"])
    file = tmp_path / "filtered.parquet"
    pairs.with_columns(subset=pl.lit("hep-go"), id=pl.int_range(pl.len())).write_parquet(file)
    for method in ("reward", "dpo"):
        config = config_of(inputs, tmp_path / method, method)
        options = {"rewardbench": [str(file)]}
        result = run_study("truncation", config, values={"ratios": [1.0, 0.5]}, options=options, plots=False)
        # The benchmark's rows are the test pairs, so that its share is the accuracy of the rewards.
        assert result.cells["rewardbench_instances"].to_list() == pytest.approx(
            result.cells["reward_accuracy"].to_list()
        )
        assert result.cells["rewardbench_reasoning"].to_list() == result.cells["rewardbench_sections"].to_list()
        bench = pl.read_csv(tmp_path / method / "rewardbench.csv")
        assert bench.filter(kind="mean", name="instances")["ratio"].to_list() == [1.0, 0.5]
        assert {"low", "high", "longest", "shortest"} < set(bench.columns)
        assert "rewardbench_instances" in result.summary["metric"].to_list()
    capsys.readouterr()
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "q"}))
    words = ["--rewardbench", str(tmp_path / "bad.jsonl"), "--output_dir", str(tmp_path / "bad")]
    assert cli.main(["study", "truncation", *words]) == 2
    assert "RewardBench has the columns" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    long = pairs.with_columns(subset=pl.lit("hep-go"), id=pl.int_range(pl.len()), chosen=pl.lit("says moo " * 300))
    long.write_parquet(tmp_path / "long.parquet")
    config = config_of(inputs, tmp_path / "cut", "reward")  # the model reads 256 tokens: what is behind is cut off
    options = {"rewardbench": [str(tmp_path / "long.parquet")]}
    result = run_study("truncation", config, values={"ratios": [1.0]}, options=options, plots=False)
    assert result.cells["rewardbench_instances"].item() is not None
    long.with_columns(prompt=pl.lit("cow " * 300)).write_parquet(tmp_path / "prompt.parquet")
    with pytest.raises(DataError, match=r"row 0, prompt: .*max_prompt_tokens"):
        run_study("truncation", config, options={"rewardbench": [str(tmp_path / "prompt.parquet")]})
    config = config_of(inputs, tmp_path / "bad", "reward")
    with pytest.raises(DataError, match="RewardBench has the columns"):
        run_study("truncation", config, options={"rewardbench": [str(tmp_path / "bad.jsonl")]})
