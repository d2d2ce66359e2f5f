"""What is given in memory becomes files of the run's, named by their content; a wrong thing ends in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from pyprefopt import data
from pyprefopt.data.reading.frames import read_preferences
from pyprefopt.errors import ConfigError
from pyprefopt.settings import in_memory
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import as_config, configure, load_config, to_yaml

ROWS = [
    {"prompt": f"p {i}", "chosen": "a b", "rejected": "a", "score_chosen": i, "chosen_rewards": [0.5, i]}
    for i in range(50)
]
FRAME = pl.DataFrame(ROWS)


def settings(tmp_path: Path, **given: object) -> dict[str, object]:
    return {"method": "dpo", "model": "m", "data": "pairs.jsonl", "output_dir": tmp_path / "run", **given}


KINDS = {
    "frame": FRAME,
    "lazy": FRAME.lazy(),
    "chunks": pl.concat([FRAME[:7], FRAME[7:]], rechunk=False),
    "table": FRAME.to_arrow(),
    "batch": FRAME.to_arrow().combine_chunks().to_batches()[0],
    "reader": FRAME.to_arrow().to_reader(max_chunksize=9),
    "pandas": FRAME.to_pandas(),
    "dataset": datasets.Dataset.from_list(ROWS),
    "list": ROWS,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_memory_are_a_file_of_the_run(tmp_path, kind):
    config = configure(**settings(tmp_path, data=KINDS[kind]))
    path = Path(config.data)
    assert path.parent == tmp_path / "run" / "inputs"
    assert path.suffix == (".jsonl" if kind == "list" else ".parquet")
    assert [entry for entry in path.parent.iterdir() if entry != path] == []
    rows = read_preferences(path)
    assert rows["prompt"].list.last().struct.field("content").to_list() == [row["prompt"] for row in ROWS]
    assert rows["score_chosen"].to_list() == list(range(50))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_the_same_rows_are_the_same_file(tmp_path, monkeypatch):
    """However they are cut into chunks, and in whatever library; other rows are another file."""
    monkeypatch.setattr(in_memory, "BATCH_ROWS", 16)
    cut = FRAME.to_arrow()
    kinds = [FRAME, KINDS["chunks"], KINDS["lazy"], cut, cut.to_reader(max_chunksize=9), cut.to_reader(max_chunksize=1)]
    assert len({configure(**settings(tmp_path, data=rows)).data for rows in kinds}) == 1
    assert len(list((tmp_path / "run" / "inputs").iterdir())) == 1
    others = [FRAME[:-1], FRAME.reverse(), FRAME.with_columns(chosen=pl.lit("x"))]
    assert len({configure(**settings(tmp_path, data=rows)).data for rows in [FRAME, *others]}) == 4


def test_every_setting_of_rows(tmp_path):
    given = settings(tmp_path, policy_init="base", data=FRAME, eval_data=ROWS, base={"data": FRAME[:2]})
    config = configure(**given)
    for path in (config.data, config.eval_data, config.base.data):
        assert Path(path).is_file()
    assert {Path(path).name.split("-")[0] for path in (config.data, config.eval_data, config.base.data)} == {
        "data", "eval_data", "base.data",
    }  # fmt: skip


def test_rows_of_numpy_and_of_any_shape(tmp_path):
    """As they would be read from JSON lines: fields that come and go, messages, arrays."""
    rows = [
        {"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "ü", "chosen_weights": np.ones(3), "n": np.int64(4)},
    ]
    path = configure(**settings(tmp_path, data=rows)).data
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    assert lines == [rows[0], rows[1] | {"chosen_weights": [1.0] * 3, "n": 4}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": [*ROWS, "x"]}, "^data must be a list of rows as dicts, got str in row 50; mend the row$"),
        ({"data": [{"prompt": object()}]}, "^data, row 0: it cannot be written as JSON .it holds one of type object"),
        ({"data": [{"score_chosen": float("nan")}]}, "^data, row 0: it cannot be written as JSON"),
        ({"data": datasets.DatasetDict(train=KINDS["dataset"])}, r"^data: .* splits train; pass .*dataset\['train'\]$"),
        ({"data": KINDS["dataset"].to_iterable_dataset()}, "^data: the source is a dataset without a length"),
        ({"data": FRAME["prompt"]}, "^data: the source must be a table whose columns .* got one of type Series "),
        ({"data": pa.table({"a": [[]], "b": [{}]})}, "^data must be a table whose rows can be written as Parquet"),
        ({"eval_data": iter(ROWS)}, "^eval_data must be .*, got one of type list_iterator$"),
        ({"model": FRAME}, "^model must be .*, got one of type DataFrame$"),
        ({"data": FRAME, "seed": "x"}, "^seed must be a whole number"),
    ],
)
def test_what_cannot_be_written_ends_in_a_sentence(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message) as raised:
        configure(**settings(tmp_path, **given))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert not any((tmp_path / "run").rglob("*.*"))


@pytest.mark.parametrize("kind", ["transformers", "ours"])
def test_a_tokenizer_in_memory_is_a_folder_of_the_run(tmp_path, kind):
    ours = data.load_tokenizer("embedded:toy")
    ours.save(tmp_path / "saved")
    given = ours if kind == "ours" else AutoTokenizer.from_pretrained(tmp_path / "saved")
    config = configure(**settings(tmp_path, tokenizer=given))
    assert configure(**settings(tmp_path, tokenizer=given)).tokenizer == config.tokenizer
    assert Path(config.tokenizer).parent == tmp_path / "run" / "inputs"
    assert len(list((tmp_path / "run" / "inputs").iterdir())) == 1
    again = data.load_tokenizer(config.tokenizer)
    assert again.encode(["says moo"]).to_list() == ours.encode(["says moo"]).to_list()
    assert (again.chat_template, again.eos_token) == (ours.chat_template, ours.eos_token)


def test_paths_are_taken_as_texts(tmp_path):
    given = {"model": Path("m"), "data": Path("d.jsonl"), "base": {"path": Path("b")}, "policy_init": "base"}
    config = configure(**settings(tmp_path, **given))
    assert (config.model, config.data, config.base.path) == ("m", "d.jsonl", "b")
    assert config.output_dir == str(tmp_path / "run")


def test_a_run_is_given_in_any_way(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: dpo\nmodel: m\ndata: d.jsonl\nseed: 1\n")
    whole = as_config(str(file))
    assert isinstance(whole, RunConfig)
    assert as_config(whole) is whole
    for config in (as_config(file), as_config({"config": file}), as_config(None, {"config": file})):
        assert config == whole
    assert as_config(file, {"seed": 2}).seed == as_config({"seed": 2, "model": "m", "data": "d"}).seed == 2
    for given, message in (
        (5, "^config must be a RunConfig, a YAML file or settings by name, got one of type int$"),
        ("nix.yaml", "^config must be an existing YAML file, got 'nix.yaml'"),
        ({"metod": "dpo"}, "unknown setting 'metod'; did you mean 'method'"),
    ):
        with pytest.raises(ConfigError, match=message):
            as_config(given)
    with pytest.raises(ConfigError, match=r"^a RunConfig is complete, and seed came beside it; write replace"):
        as_config(whole, {"seed": 2})
