"""Training on a prepared folder: segments and losses of the raw file; what cannot be honoured is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pytest

import pyprefopt
from pyprefopt import data
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.store.shards import to_ipc
from pyprefopt.errors import ArtifactError, ConfigError, DataError
from pyprefopt.stages.data import Data
from pyprefopt.stages.stage import run_stage
from pyprefopt.storage import files
from pyprefopt.storage.files import sha256_file
from tests.data.prepared import flip_a_bit
from tests.pipeline.runs import digest, losses, small
from tests.stages.made import build_data


def prepared(inputs: Path, out: Path, source: str = "train.parquet", **settings) -> str:
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    prepare(str(inputs / source), tokenizer, out, **{"max_prompt_tokens": 64, "max_tokens": 128} | settings)
    return str(out)


def same(one: Path, two: Path) -> bool:
    """The same segments; a table of several shards has several chunks."""
    tables = [SegmentStore.open(path).table for path in (one, two)]
    names = [name for name in tables[0].column_names if name in tables[1].column_names]
    assert {"row", "segment", "kind", "ids", "mask"} <= set(names)
    return tables[0].select(names).combine_chunks().equals(tables[1].select(names).combine_chunks())


def test_a_prepared_sft_set(inputs, tmp_path):
    folder = prepared(inputs, tmp_path / "folder", "sft.parquet")
    for name, path in (("raw", str(inputs / "sft.parquet")), ("prepared", folder)):
        build_data(small(inputs, tmp_path / "run", base={"data": path}), tmp_path / name)
    assert same(tmp_path / "raw/sft", tmp_path / "prepared/sft")
    with pytest.raises(
        ConfigError, match=r"^data must hold preferences, got .* of instructions; give it as base\.data, which SFT"
    ):
        build_data(small(inputs, tmp_path / "run", data=folder), tmp_path / "stage")


@pytest.mark.parametrize("held_out", [True, False])
def test_the_same_splits_as_from_the_raw_file(inputs, tmp_path, held_out):
    raw: dict = {"base": {"data": "chosen"}}
    if held_out:
        raw |= {"eval_data": None, "eval_ratio": 0.2}
    folder = raw | {"data": prepared(inputs, tmp_path / "folder")}
    if not held_out:
        folder["eval_data"] = prepared(inputs, tmp_path / "test", "test.parquet")
    for name, settings in (("raw", raw), ("prepared", folder)):
        build_data(small(inputs, tmp_path / "run", **settings), tmp_path / name)
    for split in ("train", "eval"):
        assert same(tmp_path / "raw" / split, tmp_path / "prepared" / split)
        assert (tmp_path / "prepared" / split).is_symlink() != held_out


def test_a_run_on_a_prepared_folder_is_the_run_on_the_raw_file(inputs, tmp_path):
    settings: dict = {"method": "simpo", "base": {}, "oracle": {}, "policy_init": None}
    folder = prepared(inputs, tmp_path / "folder")
    for name, path in (("raw", str(inputs / "train.parquet")), ("prepared", folder)):
        pyprefopt.train(small(inputs, tmp_path / name, data=path, **settings))
    assert losses(tmp_path / "raw") == losses(tmp_path / "prepared")
    assert digest(tmp_path / "raw") == digest(tmp_path / "prepared")


def test_the_folders_tokenizer_is_taken_where_none_is_named(inputs, tmp_path):
    folder = prepared(inputs, tmp_path / "folder")
    config = small(inputs, tmp_path / "run", data=folder, tokenizer=None)
    build_data(config, tmp_path / "stage")
    kept = data.load_tokenizer(tmp_path / "stage/tokenizer")
    assert kept.json == data.load_tokenizer(inputs / "tokenizer").json


def test_a_run_reads_its_files_once_to_hash_them(inputs, tmp_path, monkeypatch):
    """The key of the stage and that of the preparation are of the same hashes."""
    read = Counter()

    def counted(path):
        read[str(path)] += 1
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", counted)
    build_data(small(inputs, tmp_path / "run", base={"data": str(inputs / "sft.parquet")}), tmp_path / "stage")
    named = [str(inputs / name) for name in ("train.parquet", "test.parquet", "sft.parquet")]
    assert [read[name] for name in named] == [1, 1, 1]


def test_a_file_that_changes_after_the_key_was_made_is_not_used(inputs, tmp_path):
    data = tmp_path / "train.parquet"
    shutil.copy(inputs / "train.parquet", data)
    config = small(inputs, tmp_path / "run", data=str(data))
    stage = Data.of(config)
    shutil.copy(inputs / "test.parquet", data)
    with pytest.raises(ArtifactError, match=r"train\.parquet changed while it was read"):
        stage.build(tmp_path / "stage", config)


def test_the_key_follows_the_folders_content(inputs, tmp_path):
    keys = {
        Data.of(small(inputs, tmp_path / "run", data=prepared(inputs, tmp_path / name, **settings))).files["data"]
        for name, settings in (("a", {}), ("b", {}), ("c", {"offsets": False}))
    }
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({}, {"format": "hh"}, "format must be 'preference' for the prepared data"),
        ({}, {"max_tokens": 40, "max_prompt_tokens": 39}, r"max_tokens must be >= \d+, the longest there .* raise"),
        (
            {},
            {"prompt_overflow": "keep_end"},
            r"prompt_overflow must be 'error' for the prepared data .*, got 'keep_end'",
        ),
        (
            {"prompt_overflow": "keep_end"},
            {"prompt_overflow": "drop"},
            r"prompt_overflow must be 'keep_end' for the prepared data .*, got 'drop'",
        ),
        ({}, {"score_reasoning": False}, "score_reasoning must be true for the prepared data"),
        ({}, {"max_prompt_tokens": 5}, r"max_prompt_tokens must be >= \d+, the longest there"),
        ({}, {"truncation": {"ratio": 0.5}}, "truncation must be off for the prepared data"),
        ({"truncation": {"ratio": 0.5}}, {"truncation": {"ratio": 0.4}}, "truncation must be .*0.5"),
        ({"truncation": {"ratio": 0.5}}, {"truncation": {"ratio": 0.5, "cut_end": "eos"}}, "truncation must be .*0.5"),
        ({"truncation": {"ratio": 0.5}}, {"eval_data": None}, "was prepared with truncation, but test pairs must be"),
        ({}, {"chat_template": "plain"}, "was prepared with another chat template than .* has; leave tokenizer"),
    ],
)
def test_what_a_folder_cannot_honour_is_refused(inputs, tmp_path, made, asked, message):
    folder = prepared(inputs, tmp_path / "folder", **made)
    with pytest.raises(ConfigError, match=message):
        build_data(small(inputs, tmp_path / "run", data=folder, **asked), tmp_path / "stage")


@pytest.mark.parametrize("setting", ["data", "eval_data", "base.data"])
def test_a_damaged_shard_is_refused(inputs, tmp_path, setting):
    source = "sft.parquet" if setting == "base.data" else "train.parquet"
    folder = prepared(inputs, tmp_path / "folder", source)
    flip_a_bit(tmp_path / "folder/segments-00000.arrow")
    asked = {"base": {"data": folder}} if setting == "base.data" else {setting: folder}
    with pytest.raises(ArtifactError, match=r"folder/segments-00000\.arrow is missing or damaged: .*; delete .* make"):
        build_data(small(inputs, tmp_path / "run", **asked), tmp_path / "stage")


def test_a_folder_that_is_damaged_after_a_run_is_refused_by_the_next(inputs, tmp_path):
    config = small(inputs, tmp_path / "run", data=prepared(inputs, tmp_path / "folder"))
    stage, target = Data.of(config), tmp_path / "stage"
    run_stage(stage, target, config)
    assert (target / "train").is_symlink()
    flip_a_bit(tmp_path / "folder/segments-00000.arrow")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"folder/segments-00000\.arrow is missing or damaged"):
            run_stage(stage, target, config)
    prepared(inputs, tmp_path / "folder", overwrite=True)
    run_stage(stage, target, config)
    assert run_stage(stage, target, config).reused


def test_the_limit_that_cut_is_told(inputs, tmp_path, caplog):
    longest = SegmentStore.open(prepared(inputs, tmp_path / "whole")).manifest["longest_row"]
    folder = prepared(inputs, tmp_path / "cut", max_tokens=longest - 1)
    count = SegmentStore.open(folder).manifest["responses_cut"]
    build_data(small(inputs, tmp_path / "run", data=folder, max_tokens=128), tmp_path / "stage")
    were = "1 response" if count == 1 else f"{count} responses"
    assert f"{folder}: {were} cut to fit max_tokens = {longest - 1}" in caplog.text
    assert "max_tokens = 128" not in caplog.text
    raw = small(inputs, tmp_path / "run", max_tokens=longest - 1, max_prompt_tokens=longest - 2)
    build_data(raw, tmp_path / "raw")
    assert f"train.parquet: {were} cut to fit max_tokens = {longest - 1}" in caplog.text


@pytest.mark.parametrize(
    "cut",
    [
        {"truncation": {"tokens": 1}},
        {"truncation": {"length": 1, "unit": "words"}},
        {"max_tokens": 65, "prompt_overflow": "keep_end"},
    ],
)
def test_pairs_that_a_cut_makes_the_same_are_left_out_either_way(inputs, tmp_path, cut):
    from pyprefopt.data import read_preferences

    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    one, two, *_ = (word for word in json.loads(tokenizer.json)["model"]["vocab"] if word.isalpha())
    pairs = [(f"{a} {one}", f"{b} {two}") for a in (one, two) for b in (one, two)]
    prompts = {"prompt": [f"{one} " * 80 if "max_tokens" in cut else one] * len(pairs)}
    chosen, rejected = zip(*pairs, strict=True)
    frame = pl.DataFrame(prompts | {"chosen": list(chosen), "rejected": list(rejected)})
    frame.write_parquet(tmp_path / "pairs.parquet")
    assert read_preferences(frame).height == len(pairs)
    config = small(inputs, tmp_path / "run", data=str(tmp_path / "pairs.parquet"), **{"base": {"data": "chosen"}} | cut)
    with pytest.raises(DataError, match=r"identical_after_cut: \d+"):
        build_data(config, tmp_path / "raised")
    config = replace(config, on_error="skip")
    facts = build_data(config, tmp_path / "raw")["facts"]
    assert 0 < facts["rows_rejected"] < len(pairs)
    assert facts["rows_in"] == facts["rows_used"] + facts["rows_rejected"]
    made = {"max_prompt_tokens": 64, "max_tokens": 128, "on_error": "skip"} | cut
    prepare(config.data, tokenizer, tmp_path / "folder", **made)
    build_data(replace(config, data=str(tmp_path / "folder")), tmp_path / "prepared")
    assert same(tmp_path / "raw/train", tmp_path / "prepared/train")
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "raw/rejected.jsonl").read_text().splitlines()}
    assert reasons == {"identical_after_cut"}


def test_a_model_with_another_tokenizer_is_refused(inputs, tmp_path):
    folder = prepared(inputs, tmp_path / "folder")
    model = tmp_path / "model"
    model.mkdir()
    text = (inputs / "tokenizer/tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text + " ")
    config = small(inputs, tmp_path / "run", data=folder, tokenizer=None, model=str(model))
    with pytest.raises(ConfigError, match=r"another tokenizer\.json than model .* has; prepare it again with"):
        build_data(config, tmp_path / "stage")


def test_a_folder_that_does_not_hold_what_it_says_is_told(inputs, tmp_path):
    folder = Path(prepared(inputs, tmp_path / "folder"))
    config, manifest = small(inputs, tmp_path / "run", data=str(folder)), folder / "manifest.json"
    written = json.loads(manifest.read_bytes())
    counts = {"rows": written["rows"] + 1, "rows_in": written["rows_in"] + 1}
    vocabulary = data.load_tokenizer(inputs / "tokenizer").vocab_size

    def lie(ids: list[list[int]]) -> None:
        """The first shard with other ids, and the manifest with its hash."""
        shard = written["shards"][0]
        with pa.OSFile(str(folder / shard["file"])) as file:
            table = pa.ipc.open_file(file).read_all()
        at = table.column_names.index("ids")
        lists = [*ids, *table["ids"].to_pylist()[len(ids) :]]
        content = to_ipc(table.set_column(at, "ids", pa.array(lists, table["ids"].type)))
        (folder / shard["file"]).write_bytes(content)
        shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    manifest.write_text(json.dumps(written | counts))
    with pytest.raises(
        ArtifactError, match=r"folder is damaged: it holds [\d,]+ rows, and its manifest says [\d,]+; del"
    ):
        build_data(config, tmp_path / "stage")
    first = SegmentStore.open(folder).table["ids"][0].as_py()
    lie([[vocabulary, *first[1:]]])
    manifest.write_text(json.dumps(written))
    with pytest.raises(
        ArtifactError, match=rf"token {vocabulary:,} is in it, and the tokenizer has {vocabulary:,}; del"
    ):
        build_data(config, tmp_path / "stage")


def test_a_check_of_a_prepared_folder_passes(inputs, tmp_path, capsys):
    folder = prepared(inputs, tmp_path / "folder")
    config = small(
        inputs, tmp_path / "run", method="dpo", data=str(folder), check=True, base={}, oracle={}, policy_init=None
    )
    pyprefopt.train(config)
    assert "check passed" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
