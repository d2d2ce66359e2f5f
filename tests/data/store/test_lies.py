"""Manifests and shards that do not fit each other: one sentence that names the file and what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.ipc
import pytest

from pyprefopt.data.preparation.report import inspect
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.data.store.shards import to_ipc
from pyprefopt.errors import ArtifactError
from pyprefopt.storage.folders import Folder
from pyprefopt.storage.shape import misfit
from tests.data.mutated.samples import folder as make_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def rewrite(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def put(*keys, value):
    def change(manifest):
        held = manifest
        for key in keys[:-1]:
            held = held[key]
        held[keys[-1]] = value

    return change


MANIFESTS = {
    "shards[0].lines must be a whole number, 0 or more, got 'many'": put("shards", 0, "lines", value="many"),
    "shards[0].bytes must be a whole number, 0 or more, got -1": put("shards", 0, "bytes", value=-1),
    "shards must be a list, got None": put("shards", value=None),
    f"shard '{'a' * 80}' is no shard's name": put("shards", 0, "file", value="a" * 5000),
    "shard '../../etc/passwd' is no shard's name": put("shards", 0, "file", value="../../etc/passwd"),
    "fingerprint must be text, got 3": put("fingerprint", value=3),
    "rows must be a whole number, 0 or more, got True": put("rows", value=True),
    "rejected.broken_json must be a whole number": put("rejected", value={"broken_json": "x"}),
    "settings.format must be a known format, got 'odd'": put("settings", "format", value="odd"),
    "settings.user_weights[0] must be text, got 1": put("settings", "user_weights", value=[1]),
    "settings.max_tokens must be a whole number, 0 or more or null, got 'all'": put(
        "settings", "max_tokens", value="all"
    ),
    "tokenizer.special_tokens must be an object, got []": put("tokenizer", "special_tokens", value=[]),
    "inputs[0].file must be text or null, got {}": put("inputs", 0, "file", value={}),
    "its counts must add up: rows_in is rows and the rejected": put("rows", value=3),
    "its counts must add up: lines is that of all shards": put("lines", value=1),
    "key is missing": lambda manifest: manifest.pop("key"),
}


@pytest.mark.parametrize("said", MANIFESTS)
def test_a_manifest_that_lies_is_told(folder, said):
    rewrite(folder, MANIFESTS[said])
    with pytest.raises(ArtifactError) as error:
        inspect(folder)
    assert str(error.value).startswith(f"{folder}/manifest.json is damaged: {said}")
    assert str(error.value).endswith(f"; delete {folder} and make it again")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "nul", "\xff"])
def test_a_manifest_that_is_no_json_is_told(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "key.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"manifest.json is not valid JSON \(.*\); delete .* and run"):
        SegmentStore.open(tmp_path)
    assert Folder(tmp_path).pending == {}


def reshard(folder, change):
    """The first shard changed, and the manifest with it."""

    def record(manifest):
        shard = manifest["shards"][0]
        path = folder / shard["file"]
        table = pa.ipc.open_file(path.read_bytes()).read_all()
        content = change(table)
        content = content if isinstance(content, bytes) else to_ipc(content)
        path.write_bytes(content)
        shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    rewrite(folder, record)


def column(name, edit, kind=None):
    def change(table):
        values = edit(table[name].to_pylist())
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(values, kind or table[name].type))

    return change


SHARDS = {
    "column 'mask' is missing": lambda table: table.drop_columns(["mask"]),
    "column 'ids' must be large_list<item: uint32>, got large_list<item: float>": column(
        "ids", lambda ids: ids, pa.large_list(pa.float32())
    ),
    "column 'cut' must be uint32, got double": column("cut", lambda cut: cut, pa.float64()),
    "it has 2 lines, and the manifest says": lambda table: table.slice(0, 2),
    "column 'ids' of the segments frame has 1 nulls": column("ids", lambda ids: [None, *ids[1:]]),
    "column 'ids' must have no null inside of its lists": column("ids", lambda ids: [[None, *ids[0][1:]], *ids[1:]]),
    "row 0: mask must have one value per token": column("mask", lambda mask: [mask[0][1:], *mask[1:]]),
    "row 0: starts must have one value per token": column("starts", lambda starts: [[], *starts[1:]]),
    "row 0: segments must be 0, 1, ... within a row": column("segment", lambda numbers: [1, *numbers[1:]]),
    "row 0: kind must be one of prompt, chosen": column("kind", lambda kinds: ["odd", *kinds[1:]]),
    "Not an Arrow file": lambda _: b"not Arrow at all" * 9,
}


@pytest.mark.parametrize("said", SHARDS)
def test_a_shard_that_lies_is_told(folder, said):
    reshard(folder, SHARDS[said])
    with pytest.raises(ArtifactError) as error:
        inspect(folder)
    assert f" is damaged: {said}" in str(error.value)
    assert str(error.value).endswith(f"; delete {folder} and make it again")


def test_values_of_other_lines_are_told(made, tmp_path):
    store = SegmentStore.open(made)
    whole = ValueStore.write(tmp_path / "values", store, store.response_mask, key="k")
    whole.check(store)
    part = pa.table({name: whole.table[name].slice(0, 3) for name in whole.table.column_names})
    ValueStore(part, {})._write(tmp_path / "values", key="k", segments=store.fingerprint)
    with pytest.raises(ArtifactError, match=r"values are of 3 lines, and the segments have 60; run their stage"):
        ValueStore.open(tmp_path / "values").check(store)


def test_a_folder_of_no_rows_is_told(folder):
    rewrite(folder, put("shards", value=[]))
    with pytest.raises(ArtifactError, match="holds no rows: all were left out when it was made"):
        SegmentStore.open(folder).num_lines  # noqa: B018


def test_shapes():
    shape = {"a": int, "b": [{"c": (str, None)}], "d": {...: float}}
    assert misfit({"a": 1, "b": [{"c": None}, {"c": "x"}], "d": {"e": 1.5, "f": 2}, "more": 0}, shape) == ""
    for value, said in (
        ({"a": -1, "b": [], "d": {}}, "a must be a whole number, 0 or more, got -1"),
        ({"a": 2**63, "b": [], "d": {}}, "a must be a whole number, 0 or more, got 9223372036854775808"),
        ({"a": 1, "b": [{}], "d": {}}, "b[0].c is missing"),
        ({"a": 1, "b": [{"c": 1}], "d": {}}, "b[0].c must be text or null, got 1"),
        ({"a": 1, "b": [{"c": "\ud800"}], "d": {}}, r"b[0].c must be text or null, got '\ud800'"),
        ({"a": 1, "b": [], "d": {"\ud800": 1.0}}, r"a name in d. must be text, got '\ud800'"),
        ({"a": 1, "b": [], "d": {"e": True}}, "d.e must be a number, got True"),
        ([], "it must be an object, got []"),
    ):
        assert misfit(value, shape) == said
