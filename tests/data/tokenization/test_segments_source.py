"""`tokenize` of files has no frame in between; it must give what reading and tokenizing give one after another."""

from __future__ import annotations

import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from transformers import AutoTokenizer

from pyprefopt import data
from pyprefopt.data.files import parts
from pyprefopt.data.reading.frames import scan_preferences
from pyprefopt.data.tokenization.segments import SEGMENTS, load_tokenizer, tokenize, tokenize_rows
from pyprefopt.errors import ConfigError, DataError
from tests.data.frames import byte_tokenizer

EXTRA = {"role": "user", "content": "and?", "name": "ann"}
PAIRS = [
    {"prompt": "why 😀", "chosen": "as\n\"it\" is", "rejected": "no"},
    {"prompt": [{"role": "system", "content": "s"}, EXTRA], "chosen": "yes", "rejected": "no", "score_chosen": 2},
    {"prompt": "cut", "chosen": "a long answer", "rejected": "b", "chosen_complete": False, "id": 7},
    {"prompt": "bad", "chosen": "", "rejected": "b"},
    {"prompt": "bad", "chosen": 3, "rejected": "b"},
    {"prompt": "tools", "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]},
    {"prompt": "too long " * 40, "chosen": "a", "rejected": "b"},
]  # fmt: skip
TRANSCRIPTS = [
    {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: x",
    },
    {"chosen": "\n\nHuman: why\n\nAssistant: so", "rejected": "\n\nHuman: why\n\nAssistant: no"},
]


@pytest.fixture
def toy(tmp_path):
    return load_tokenizer(byte_tokenizer(tmp_path), eos_token="</s>", chat_template="plain")


def write(path, rows):
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("rows", [PAIRS, TRANSCRIPTS])
@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("block_rows", [1, 2, 1000])
def test_files_give_what_frames_give(tmp_path, toy, rows, offsets, block_rows, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_ROWS", block_rows)
    path = write(tmp_path / "pairs.jsonl", rows)
    read = scan_preferences(path)
    limits = {"max_prompt_tokens": 200, "max_tokens": 230}
    expected = tokenize_rows(read.frame, toy, **limits, offsets=offsets)
    ours = tokenize(path, toy, **limits, offsets=offsets, on_error="skip")
    assert_frame_equal(ours, expected.segments)
    assert set(SEGMENTS) - set(ours.columns) == (set() if offsets else {"starts", "ends", "turns"})
    if not read.rejects.is_empty():
        with pytest.raises(DataError) as raised:
            tokenize(path, toy, **limits)
        for row in [*read.rejects["row"], *expected.rejects["row"]]:
            assert f"{path}, row {row}" in str(raised.value)


def test_candidates_instructions_and_tables_go_the_same_way(tmp_path, toy):
    candidates = [{"prompt": "p", "responses": ["a", "b c", "d"], "scores": [1, None, 0.5]}]
    ours = tokenize(write(tmp_path / "c.jsonl", candidates), toy)
    assert_frame_equal(ours, tokenize(data.read_candidates(tmp_path / "c.jsonl"), toy))
    assert ours["score"].to_list() == [None, 1.0, None, 0.5]
    instructions = [{"prompt": "p", "response": "a"}, {"prompt": "q", "response": "b"}]
    ours = tokenize(write(tmp_path / "i.jsonl", instructions), toy)
    assert_frame_equal(ours, tokenize(data.read_instructions(tmp_path / "i.jsonl"), toy))
    table = pl.DataFrame(TRANSCRIPTS).to_arrow()
    assert_frame_equal(tokenize(table, toy), tokenize(data.read_preferences(table), toy))


def test_a_frame_is_recognised_by_its_columns(toy):
    with pytest.raises(ConfigError, match="format must be auto for a frame"):
        tokenize(data.read_preferences(pl.DataFrame(TRANSCRIPTS)), toy, format="hh")


def test_frames_of_raw_rows_are_read_as_tables(toy):
    raw = pl.DataFrame({"prompt": ["p", "q"], "chosen": ["a b", "c"], "rejected": ["d", ""], "row": [7, 7]})
    expected = tokenize(data.read_preferences(raw, on_error="skip"), toy)
    assert_frame_equal(tokenize(raw, toy, on_error="skip"), expected)
    lazy = tokenize(raw.lazy(), toy, on_error="skip", format="preference")
    for engine in ("in-memory", "streaming"):
        assert_frame_equal(lazy.collect(engine=engine), expected)
    chats = pl.DataFrame({"messages": [[{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]]})
    assert_frame_equal(tokenize(chats, toy), tokenize(data.read_instructions(chats), toy))
    with pytest.raises(DataError, match="row 1"):
        tokenize(raw, toy)
    with pytest.raises(DataError, match="no known schema; its fields are a"):
        tokenize(pl.DataFrame({"a": [1]}), toy)


class Foreign:
    """As a tokenizer of another library."""

    def save_pretrained(self, folder):
        raise NotImplementedError

    def __repr__(self):
        return "vocabulary " * 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tok/dir", r"^'tok/dir' is no local path"),
        (Foreign(), r"^tokenizer must be a folder, .*got one of type Foreign; save it \(save_pretrained\)"),
        (None, "^tokenizer must be a folder, a tokenizer.json, a hub name, or .*got one of type NoneType$"),
    ],
)
def test_another_tokenizer_is_reported(tmp_path, given, message):
    frame = pl.DataFrame({"prompt": ["p"], "chosen": ["a"], "rejected": ["b"]})
    with pytest.raises(ConfigError, match=message):
        tokenize(frame, given)
    with pytest.raises(ConfigError, match=message):
        tokenize_rows(data.read_preferences(frame), given)
    with pytest.raises(ConfigError, match=message):
        data.prepare(frame, given, tmp_path / "out")
    if isinstance(given, Foreign):
        with pytest.raises(ConfigError, match=message):
            data.truncate(frame, length=1, tokenizer=given)
        with pytest.raises(ConfigError, match=r"save it \(save_pretrained\) and pass its folder$"):
            load_tokenizer(given)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The embedded set's tokenizer as files, as transformers' object, and as ours."""
    folder = tmp_path_factory.mktemp("saved")
    load_tokenizer("embedded:toy").save(folder)
    return {"path": folder, "text": str(folder), "transformers": AutoTokenizer.from_pretrained(folder)}


@pytest.mark.parametrize("kind", ["path", "text", "transformers"])
def test_a_tokenizer_is_what_load_tokenizer_takes(saved, tmp_path, kind):
    """A path, and a tokenizer of transformers in memory, in every function that takes a tokenizer."""
    frame = pl.DataFrame({"prompt": ["fara cow"], "chosen": ["says moo moo"], "rejected": ["says oink"]})
    given, ours = saved[kind], load_tokenizer("embedded:toy")
    expected = tokenize(frame, ours)
    assert_frame_equal(tokenize(frame, given), expected)
    assert_frame_equal(tokenize(frame.lazy(), given).collect(), expected)
    read = data.read_preferences(frame)
    assert_frame_equal(tokenize_rows(read, given).segments, tokenize_rows(read, ours).segments)
    store = data.prepare(frame, given, tmp_path / "out")
    assert store.table["ids"].to_pylist() == expected["ids"].to_list()
    assert load_tokenizer(tmp_path / "out" / "tokenizer").chat_template == ours.chat_template
    for source, options in ((frame, {}), (expected, {"cut_end": "eos"})):
        cut = data.truncate(source, tokens=2, tokenizer=given, **options)
        assert_frame_equal(cut, data.truncate(source, tokens=2, tokenizer=ours, **options))
    assert frame["chosen"].prefopt.encode(given).to_list() == ours.encode(frame["chosen"]).to_list()


def test_a_tokenizer_in_memory_goes_by_its_name(saved):
    made = load_tokenizer(saved["transformers"])
    assert made.path == saved["path"]
    assert made.fingerprint == load_tokenizer(saved["transformers"]).fingerprint
    saved["transformers"].chat_template, own = None, saved["transformers"].chat_template
    try:
        with pytest.raises(ConfigError, match=rf"^{saved['path']} has no chat template; pass chat_template"):
            load_tokenizer(saved["transformers"])
        assert load_tokenizer(saved["transformers"], chat_template="plain").eos_token == made.eos_token
    finally:
        saved["transformers"].chat_template = own


def test_a_slow_tokenizer_is_refused():
    class Slow:
        all_special_tokens = ()

        def save_pretrained(self, folder):
            """Nothing that we read."""

    with pytest.raises(ConfigError, match=r"^tokenizer must have a tokenizer\.json, and one of type .*Slow saves none"):
        load_tokenizer(Slow())


def test_the_embedded_tokenizer_counts_too():
    frame = pl.DataFrame({"chosen": ["says moo moo"], "rejected": ["says oink"]})
    assert data.truncate(frame, tokens=1, tokenizer="embedded:toy")["chosen"].to_list() == ["says"]


@pytest.mark.parametrize(
    ("texts", "got"),
    [("a b", "one text"), (5, "one of type int"), ([1, 2], "a column of Int64"), ([["a"]], "a column")],
)
def test_encode_takes_texts_alone(toy, texts, got):
    with pytest.raises(
        DataError, match=f"^texts must be strings, as a list or a column, got {got}.*for one text write"
    ):
        toy.encode(texts)


def test_a_store_is_shown_in_one_line(toy):
    segments = tokenize(data.read_preferences(pl.DataFrame(TRANSCRIPTS)), toy)
    shown = repr(data.SegmentStore.from_frame(segments))
    assert shown.startswith("SegmentStore(6 lines: row, segment, kind, ids, mask")
