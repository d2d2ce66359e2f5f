"""`eval_truncation`: test pairs whole, cut as the training pairs are, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pyprefopt
from pyprefopt import data
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError
from tests.pipeline.runs import small
from tests.stages.made import build_data

CUTS: list[dict[str, Any]] = [{"ratio": 0.3}, {"ratio": 0.3, "unit": "characters", "rounding": "floor"}, {"tokens": 3}]


def ids(folder: Path) -> list[list[int]]:
    return SegmentStore.open(folder).table["ids"].to_pylist()


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("held_out", [False, True])
def test_splits_are_whole_or_cut(cut: dict[str, Any], held_out: bool, inputs: Path, tmp_path: Path) -> None:
    test: dict[str, Any] = {"eval_data": None, "eval_ratio": 0.25} if held_out else {}
    made = {}
    for tests in (("none",), ("same",), ("none", "same")):
        name = "-".join(tests)
        config = small(inputs, tmp_path / "run", truncation=cut, eval_truncation=tests, on_error="skip", **test)
        made[name] = tmp_path / name, build_data(config, tmp_path / name)["facts"]
    (none, whole), (same, cut_facts), (both, facts) = made.values()
    assert ids(none / "train") == ids(same / "train") == ids(both / "train")
    assert ids(none / "eval") == ids(both / "eval")
    assert ids(same / "eval") == ids(both / "eval_cut") != ids(none / "eval")
    assert not (none / "eval_cut").exists()
    assert not (same / "eval_cut").exists()
    assert whole["eval"]["tokens"] > cut_facts["eval"]["tokens"] == facts["eval_cut"]["tokens"]
    file = inputs / ("train.parquet" if held_out else "test.parquet")
    store = SegmentStore.open(both / "eval_cut")
    rows = data.read_preferences(str(file)).filter(pl.col("row").is_in(pl.Series(store.rows).implode()))
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    if cut.get("unit") == "characters":
        wanted = data.tokenize(data.truncate(rows, **cut), tokenizer)
    else:
        wanted = data.truncate(data.tokenize(rows, tokenizer), **cut)
    assert ids(both / "eval_cut") == wanted["ids"].to_list()


def test_pairs_that_a_cut_makes_equal_are_counted_apart(inputs: Path, tmp_path: Path) -> None:
    words = ["moo", "meow", "woof", "quack"]
    rows = {"prompt": words * 2, "chosen": ["says moo"] * 8, "rejected": ["says woof", "quack"] * 4}
    test = tmp_path / "test.parquet"
    pl.DataFrame(rows).write_parquet(test)
    config = small(
        inputs, tmp_path / "run", eval_data=str(test), truncation={"length": 1, "unit": "words"},
        eval_truncation=("none", "same"), on_error="skip",
    )  # fmt: skip
    facts = build_data(config, tmp_path / "stage")["facts"]
    assert (facts["eval"]["rows"], facts["eval_cut"]["rows"]) == (8, 4)
    assert facts["eval_cut"]["identical_after_cut"] == 4
    assert facts["rows_in"] == facts["rows_used"] + facts["rows_rejected"]
    assert facts["rows_rejected"] == facts["train"]["identical_after_cut"]  # the test pairs are used, whole


def test_every_test_pair_is_among_the_cut_ones_or_told(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"prompt": ["cow"] * 6, "chosen": ["says moo"] * 4 + ["    says moo"] * 2, "rejected": ["meow says"] * 6}
    pl.DataFrame(rows).write_parquet(tmp_path / "test.parquet")
    cut: dict[str, Any] = {"truncation": {"length": 4, "unit": "characters"}, "on_error": "skip"}
    both = small(
        inputs, tmp_path / "run", eval_data=str(tmp_path / "test.parquet"), **cut, eval_truncation=("none", "same")
    )
    facts = build_data(both, tmp_path / "both")["facts"]
    lost = facts["eval"]["rows"] - facts["eval_cut"]["rows"]
    assert lost > 0
    assert (
        f"eval_cut: {lost} rows are left out of the cut test rows (empty_after_cut: {lost}); whole they" in caplog.text
    )
    same = small(inputs, tmp_path / "run", eval_data=str(tmp_path / "test.parquet"), **cut, eval_truncation="same")
    found = build_data(same, tmp_path / "same")["facts"]
    assert found["eval"]["rows"] == facts["eval_cut"]["rows"]
    assert found["rows_rejected"] == facts["rows_rejected"] + lost


def test_both_are_in_the_summary_and_in_metrics(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut: dict[str, Any] = {"truncation": {"ratio": 0.3}, "eval_truncation": ("none", "same"), "max_steps": 2}
    run = pyprefopt.train(small(inputs, tmp_path, method="dpo", **cut, oracle={}))
    table = capsys.readouterr().out
    assert "32 cut test pairs" in table
    assert "eval_cut_rewards/accuracies" in table
    pairs = pl.read_parquet(tmp_path / "stages" / "policy" / "test_pairs.parquet")
    assert pairs.group_by("split", maintain_order=True).len().rows() == [("eval", 32), ("eval_cut", 32)]
    after = run.summary["stages"]["policy"]["eval_after"]
    for split in ("eval", "eval_cut"):
        own = pairs.filter(split=split)
        assert own["reward_margin"].mean() == pytest.approx(after[f"{split}_rewards/margins"])
        assert (own["reward_margin"] > 0).mean() == pytest.approx(after[f"{split}_rewards/accuracies"])
        right = own.select((pl.col("ranking_margin").sign() + 1) / 2).to_series()
        assert right.mean() == pytest.approx(after[f"{split}_ranking_accuracy"])


def test_a_prepared_test_set_is_cut_as_asked(inputs: Path, tmp_path: Path) -> None:
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    limits: dict[str, Any] = {"max_prompt_tokens": 64, "max_tokens": 128}
    for name, cut in (("whole", None), ("half", {"ratio": 0.5})):
        prepare(str(inputs / "test.parquet"), tokenizer, tmp_path / name, truncation=cut, **limits)

    def run(test: str, ratio: float, *tests: str) -> Any:
        cut: dict[str, Any] = {"truncation": {"ratio": ratio}, "eval_truncation": tests}
        return build_data(small(inputs, tmp_path / "run", eval_data=str(tmp_path / test), **cut), tmp_path / "stage")

    assert run("half", 0.5, "same")["facts"]["eval"]["rows"] == 32
    assert run("whole", 0.5, "none")["facts"]["eval"]["rows"] == 32
    with pytest.raises(
        ConfigError, match=r"eval_truncation must be none for the prepared eval_data .*pass the raw data"
    ):
        run("whole", 0.5, "same")
    with pytest.raises(ConfigError, match=r"eval_truncation must be none for the prepared eval_data"):
        run("half", 0.4, "same")
    with pytest.raises(ConfigError, match=r"was prepared with truncation, but test pairs must be whole; .*same"):
        run("half", 0.5, "none")
