"""Training on columns of other names, on lists of files and on mixtures of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pyprefopt import data
from pyprefopt.cli.options import parse_args
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.settings.resolve import load_config, to_yaml
from pyprefopt.stages.data import Data
from pyprefopt.stages.sources import texts_of
from tests.pipeline.runs import small
from tests.stages.made import build_data

OTHER = {"prompt": "question", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def renamed(inputs: Path, tmp_path: Path) -> Path:
    """The pairs with columns of other names."""
    theirs = tmp_path / "theirs.parquet"
    pl.read_parquet(inputs / "train.parquet").rename(OTHER).write_parquet(theirs)
    return theirs


def test_the_data_is_that_of_our_names(inputs: Path, renamed: Path, tmp_path: Path) -> None:
    plain = build_data(small(inputs, tmp_path / "run"), tmp_path / "a")
    config = small(inputs, tmp_path / "run", data=str(renamed), columns=OTHER)
    assert config.columns == ("prompt=question", "chosen=good", "rejected=bad")
    made = build_data(config, tmp_path / "b")
    assert made["fingerprint"] == plain["fingerprint"]
    assert (tmp_path / "b" / "train_planted").exists() == (tmp_path / "a" / "train_planted").exists()
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "run.yaml")) == config
    assert parse_args(["--config", str(tmp_path / "run.yaml"), "--columns", "prompt=a"]).columns == ("prompt=a",)
    with pytest.raises(DataError, match=r"say which: columns=\{'prompt': 'question', 'chosen': 'good', 'rejected': "):
        build_data(small(inputs, tmp_path / "run", data=str(renamed)), tmp_path / "c")
    wrong = small(inputs, tmp_path / "run", data=str(renamed), columns=OTHER | {"chosen": "god"})
    with pytest.raises(DataError, match=r"there is no column 'god' for chosen; did you mean 'good'\?"):
        build_data(wrong, tmp_path / "c")


def test_a_prepared_folder_has_its_own(inputs: Path, renamed: Path, tmp_path: Path) -> None:
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    limits = {"max_prompt_tokens": 64, "max_tokens": 128}
    data.prepare(str(renamed), tokenizer, tmp_path / "folder", columns=OTHER, **limits)
    config = small(inputs, tmp_path / "run", data=str(tmp_path / "folder"))
    build_data(config, tmp_path / "a")
    texts = texts_of(config, "train", SegmentStore.open(tmp_path / "a" / "train"))
    assert texts.height == 64
    other = small(inputs, tmp_path / "run", data=str(tmp_path / "folder"), columns=["prompt=question", "chosen=bad"])
    with pytest.raises(ConfigError, match=r"columns must be \['prompt=question', 'chosen=good', 'rejected=bad'\] for"):
        build_data(other, tmp_path / "b")


def test_a_list_and_a_mixture(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = pl.read_parquet(inputs / "train.parquet")
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")
    rows.head(40).write_ndjson(a)
    rows.tail(24).write_parquet(b)
    whole = build_data(small(inputs, tmp_path / "run", data=[a, b]), tmp_path / "list")
    assert whole["facts"]["train"]["rows"] == 64
    config = small(inputs, tmp_path / "run", data=[f"{a}:0.5", f"{b}:0.5"])
    assert config.data == (f"{a}:0.5", f"{b}:0.5")
    assert parse_args(["--method", "dpo", "--model", "m", "--data", *config.data]).data == config.data
    assert load_config(written(tmp_path, to_yaml(config))) == config
    with caplog.at_level(logging.INFO, "pyprefopt"):
        made = build_data(config, tmp_path / "mixture")
    assert f"mixture: 24 of 40 rows of {a}, 24 of 24 rows of {b}" in caplog.messages
    assert (made["facts"]["train"]["rows"], made["facts"]["rows_in"] - whole["facts"]["rows_in"]) == (48, -16)
    store = SegmentStore.open(tmp_path / "mixture" / "train")
    assert texts_of(config, "train", store)["row"].to_list() == sorted(set(store.rows.tolist()))
    assert build_data(config, tmp_path / "again")["fingerprint"] == made["fingerprint"]
    keys = {Data.of(small(inputs, tmp_path / "run", data=names, seed=seed)).files["data"] for names, seed in (
        ([a, b], 0), (config.data, 0), (config.data, 1), ((f"{a}:0.2", f"{b}:0.8"), 0),
    )}  # fmt: skip
    assert len(keys) == 4
    held = small(inputs, tmp_path / "run", data=config.data, eval_data=None, eval_ratio=0.25)
    facts = build_data(held, tmp_path / "held")["facts"]
    assert facts["train"]["rows"] + facts["eval"]["rows"] == 48


def written(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text)
    return str(folder / "run.yaml")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "data must be a file, or a list of files, got"),
        (["folder", "train.parquet"], r"data: the prepared folder '.*folder' cannot stand in a list; name the files"),
        (["train.parquet:0.5", "test.parquet"], "data must be given with a weight, as the others are"),
    ],
)
def test_lists_that_are_none(inputs: Path, tmp_path: Path, names: list[str], message: str) -> None:
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    data.prepare(str(inputs / "train.parquet"), tokenizer, tmp_path / "folder")
    paths: Any = [str((tmp_path if name == "folder" else inputs) / name) for name in names]
    with pytest.raises(ConfigError, match=message):
        build_data(small(inputs, tmp_path / "run", data=paths), tmp_path / "a")
