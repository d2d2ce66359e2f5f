"""Files and frames of every format end as the same frame; bad rows end as rejects and nothing goes missing."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.data.reading.frames import (
    CHAT,
    read_instructions,
    read_preferences,
    scan_instructions,
    scan_preferences,
)
from pyprefopt.data.reading.rejects import REJECTS
from pyprefopt.errors import ConfigError, DataError

SHARED = Path(os.environ.get("PYPREFOPT_SHARED", Path(__file__).parents[4] / "shared")) / "data"
PLAIN = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}


def user(text, **extra):
    return {"role": "user", "content": text, **extra}


def assistant(text, **extra):
    return {"role": "assistant", "content": text, **extra}


def human(*turns):
    return "".join(f"\n\n{'Human' if i % 2 == 0 else 'Assistant'}: {turn}" for i, turn in enumerate(turns))


def jsonl(path, rows):
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def only(frame, column):
    """The first row's chat as (role, content) couples."""
    return [(m["role"], m["content"]) for m in frame[column][0]]


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data is not here: {path}")
    return path


# -- formats


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PLAIN, "preference"),
        ({"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": "No."}, "preference"),
        ({"prompt": "Hi", "chosen": [assistant("Hello.")], "rejected": [assistant("No.")]}, "preference"),
        ({"chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("No.")]}, "preference"),
        (
            {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("No.")]},
            "ultrafeedback",
        ),
        ({"chosen": human("Hi", "Hello."), "rejected": human("Hi", "No.")}, "hh"),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello."},
                "rejected": {"from": "gpt", "value": "No."},
            },
            "sharegpt",
        ),
    ],
)
def test_every_format_gives_the_same_frame(tmp_path, row, expected):
    result = scan_preferences(jsonl(tmp_path / "a.jsonl", [row]))
    assert result.format == expected
    assert only(result.frame, "prompt") == [("user", "Hi")]
    assert only(result.frame, "chosen") == [("assistant", "Hello.")]
    assert only(result.frame, "rejected") == [("assistant", "No.")]
    assert result.frame.schema["prompt"] == result.frame.schema["chosen"] == CHAT
    assert result.frame["row"].dtype == pl.UInt64
    assert result.frame["chosen_complete"].all()


def test_multi_turn_chats_share_all_but_the_last_turn(tmp_path):
    row = {"chosen": human("a", "b", "c", "good\n\ntext "), "rejected": human("a", "b", "c", "bad")}
    frame = read_preferences(jsonl(tmp_path / "a.jsonl", [row]))
    assert only(frame, "prompt") == [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert only(frame, "chosen") == [("assistant", "good\n\ntext ")]


def test_the_shared_prefix_goes_by_messages_not_by_characters(tmp_path):
    row = {"chosen": human("a", "same start, good"), "rejected": human("a", "same start, bad")}
    frame = read_preferences(jsonl(tmp_path / "a.jsonl", [row]))
    assert only(frame, "chosen") == [("assistant", "same start, good")]


def test_sharegpt_system_text_becomes_the_first_message(tmp_path):
    turn = {"from": "gpt", "value": "x"}
    row = {"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}], "chosen": turn}
    frame = read_preferences(jsonl(tmp_path / "a.jsonl", [{**row, "rejected": {**turn, "value": "y"}}]))
    assert only(frame, "prompt") == [("system", "Be kind."), ("user", "Hi")]
    assert "system" not in frame.columns


def test_further_keys_of_a_message_are_kept_as_json(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": 1.0}], "name": None}
    row = {
        "prompt": [user("Hi", name="Ann"), call],
        "chosen": "a",
        "rejected": "b",
        "tools": [{"f": 1}],
        "score_chosen": 1,
    }
    frame = read_preferences(jsonl(tmp_path / "a.jsonl", [row]))
    extras = [message["extra"] for message in frame["prompt"][0]]
    assert [json.loads(extra) for extra in extras] == [{"name": "Ann"}, {"tool_calls": [{"id": 1.0}]}]
    assert frame["chosen"][0][0]["extra"] is None
    assert json.loads(frame["tools"][0]) == [{"f": 1}]
    assert frame["score_chosen"].dtype == pl.Float32


def test_what_was_read_reads_again_as_itself(tmp_path):
    row = {**PLAIN, "prompt": [user("Hi", name="Ann")], "id": "x", "chosen_complete": False, "tools": "[1]"}
    first = read_preferences(jsonl(tmp_path / "a.jsonl", [row, {**row, "chosen": 'é\n"\\ 😀'}]))
    assert first["chosen_complete"].not_().all()
    assert read_preferences(first).equals(first)
    first.write_parquet(tmp_path / "a.parquet")
    assert read_preferences(tmp_path / "a.parquet").equals(first)


def test_other_columns_are_carried_typed_and_stay_with_their_row(tmp_path):
    rows = [{**PLAIN, "rejected": ""}, PLAIN, {**PLAIN, "id": 7, "tags": ["x"], "meta": {"a": 1}}, {**PLAIN, "id": 8}]
    result = scan_preferences(jsonl(tmp_path / "a.jsonl", rows))
    assert result.frame["row"].equals(pl.Series("row", [1, 2, 3], dtype=pl.UInt64))
    assert result.frame["id"].equals(pl.Series("id", [None, 7, 8]))
    assert result.frame.schema["tags"] == pl.List(pl.String)
    typed = pl.DataFrame({**{k: [v] * 3 for k, v in PLAIN.items()}, "when": [1, 2, 3]}).with_columns(
        pl.col("when").cast(pl.Datetime), chosen=pl.Series(["a", "No.", "b"])
    )
    used = scan_preferences(typed).frame
    assert used["when"].equals(typed["when"].gather([0, 2]))


@pytest.mark.parametrize(
    ("values", "texts", "said"),
    [
        ([1, {"a": [1]}, [2]], ["1", '{"a": [1]}', "[2]"], "is a number in row 0 and an object in row 1"),
        ([True, 1, None], ["true", "1", None], "is true or false in row 0 and a number in row 1"),
        ([[1], 1, "x"], ["[1]", "1", "x"], "is a list of numbers in row 0 and a number in row 1"),
        ([{"a": []}, {"a": {}}, None], ['{"a": []}', '{"a": {}}', None], "has values of two types"),
    ],
)
def test_a_field_without_a_common_type_is_carried_as_text(tmp_path, caplog, values, texts, said):
    rows = [{**PLAIN, "m": value, "n": number} for number, value in enumerate(values)]
    found = read_preferences(jsonl(tmp_path / "a.jsonl", rows))
    assert found["m"].to_list() == texts
    assert found["n"].to_list() == [0, 1, 2]
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(": ", 1)[1] for line in told] == [f"field 'm' {said}: its column holds texts, all else as JSON"]


@pytest.mark.parametrize("inside", [False, True])
def test_ever_new_fields_are_bounded(tmp_path, inside):
    """Each row has a field of its own: a table of rows times rows."""

    def rows(count):
        for row in range(count):
            yield {**PLAIN, **({"m": {f"k{row}": row}} if inside else {f"k{row}": row})}

    path = jsonl(tmp_path / "a.jsonl", rows(12_000))
    row, name = (9_999, "m.k9999") if inside else (10_000, "k10000")
    said = f"at most 10,000 further fields, and row {row} brings one more, '{name}'"
    with pytest.raises(DataError, match=re.escape(said)):
        read_preferences(path)
    path = jsonl(tmp_path / "b.jsonl", rows(9_000))
    with pytest.raises(DataError, match=r"further fields, of which few rows have each, are a table of 81,.* cells"):
        read_preferences(path)
    assert read_preferences(jsonl(tmp_path / "c.jsonl", rows(300))).height == 300
    assert scan_instructions(jsonl(tmp_path / "d.jsonl", ({**row, "response": "A"} for row in rows(12_000)))).rows_in


def test_weights_of_two_kinds_name_their_rows(tmp_path):
    spans = [{**PLAIN, "chosen_weights": [{"start": 0, "end": 1, "weight": 2}]}]
    rows = [PLAIN, *spans, BAD["empty_response"], {**PLAIN, "chosen_weights": [1.0]}]
    path = jsonl(tmp_path / "a.jsonl", [row for row in rows if isinstance(row, dict)])
    message = r"a\.jsonl: field 'chosen_weights' .* is a list of objects in row 1 and a list of numbers in "
    with pytest.raises(DataError, match=message + "row 3; write one type in all rows, or drop the field$"):
        scan_preferences(path)


# -- containers


def containers(tmp_path):
    frame = pl.DataFrame({k: [v, v + "!"] for k, v in PLAIN.items()})
    text = "\n".join(json.dumps(row) for row in frame.rows(named=True))
    array = json.dumps(frame.rows(named=True), indent=2)
    files = {"a.jsonl": text, "b.json": array, "c.json": text, "d.csv": frame.write_csv()}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    frame.write_parquet(tmp_path / "e.parquet")
    frame.write_ipc(tmp_path / "f.arrow")
    frame.write_ipc_stream(tmp_path / "g.arrow")
    frame.write_ipc(tmp_path / "h.feather")
    return frame, sorted(path for path in tmp_path.iterdir())


def test_every_container_holds_the_same_rows(tmp_path):
    frame, paths = containers(tmp_path)
    expected = read_preferences(frame)
    assert expected.height == 2
    assert len(paths) == 12
    for path in paths:
        assert read_preferences(path).equals(expected), path
        assert scan_preferences(str(path)).file == str(path)


def test_a_lazy_frame_comes_back_lazy():
    frame = pl.DataFrame([PLAIN])
    lazy = read_preferences(frame.lazy())
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect(engine="streaming").equals(read_preferences(frame))


def test_columns_in_several_chunks(tmp_path):
    frame = pl.concat([pl.DataFrame([PLAIN]), pl.DataFrame([{**PLAIN, "chosen": "Yes."}])], rechunk=False)
    assert only(read_preferences(frame)[1:], "chosen") == [("assistant", "Yes.")]


# -- errors


BAD = {
    "empty_response": {**PLAIN, "chosen": " \n"},
    "identical_pair": {**PLAIN, "chosen": "No."},
    "empty_prompt": {**PLAIN, "prompt": ""},
    "not_a_string": {**PLAIN, "chosen": 7},
    "missing_field": {"prompt": "Hi", "choosen": "Hello.", "rejected": "No."},
    "broken_json": '{"prompt": "Hi", "chosen": ',
    "diverging_chats": {
        "chosen": [user("a"), assistant("x"), user("b"), assistant("y")],
        "rejected": [user("a"), assistant("z"), user("b"), assistant("y")],
    },
    "not_assistant": {"chosen": [user("a"), assistant("x"), user("b")], "rejected": [user("a"), assistant("y")]},
    "unknown_role": {"prompt": [{"role": "wizard", "content": "a"}], "chosen": "x", "rejected": "y"},
    "not_a_message": {"prompt": [{"role": "user", "text": "Hi"}], "chosen": "x", "rejected": "y"},
    "not_a_number": {**PLAIN, "score_chosen": "high"},
    "not_a_boolean": {**PLAIN, "chosen_complete": "yes"},
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_named(tmp_path, reason):
    path = jsonl(tmp_path / "a.jsonl", [PLAIN, "", BAD[reason]])
    result = scan_preferences(path)
    assert result.frame["row"].equals(pl.Series("row", [0], dtype=pl.UInt64))
    assert result.rejects.schema == REJECTS
    reject = result.rejects.row(0, named=True)
    assert (reject["reason"], reject["row"], reject["file"]) == (reason, 1, str(path))
    assert reject["rule"]
    assert reject["remedy"]
    assert len(reject["value"]) <= 80


def test_rejects_name_what_stands_where(tmp_path):
    content = {"role": "assistant", "content": [{"type": "image", "image": "x" * 200}]}
    rows = [PLAIN, "", BAD["broken_json"], BAD["missing_field"], {**PLAIN, "chosen": [content]}]
    rejects = scan_preferences(jsonl(tmp_path / "a.jsonl", rows)).rejects
    assert rejects["rule"][0].startswith("line 3: ")
    assert "column 27" in rejects["rule"][0]
    assert rejects["remedy"][1].endswith("did you mean 'choosen'?")
    assert rejects["field"][2] == "chosen[0].content"
    assert rejects["value"][2].startswith('[{"type": "image"')


def test_lines_that_are_not_utf8_are_rejects(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(PLAIN).encode() + b'\n{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n')
    assert "column 13" in scan_preferences(path).rejects["rule"][0]


def test_raise_reads_everything_first_and_skip_records(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [BAD["empty_response"], PLAIN, BAD["identical_pair"]])
    with pytest.raises(DataError, match=r"2 of 3 rows(.|\n)*empty_response: 1(.|\n)*identical_pair: 1"):
        read_preferences(path)
    frame = read_preferences(path, on_error="skip", rejected_path=tmp_path / "out" / "rejected.jsonl")
    assert frame.height == 1
    recorded = pl.read_ndjson(tmp_path / "out" / "rejected.jsonl")
    assert recorded["row"].equals(pl.Series("row", [0, 2]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"question": "x", "choosen": "y"}', "no known schema.*did you mean 'chosen'"),
        (
            "a.jsonl",
            '{"prompt": "x", "chosen": "y"}',
            "its fields are prompt, chosen; the nearest format, preference, needs prompt, chosen, rejected; missing: "
            "rejected; see format='…'",
        ),
        (
            "a.jsonl",
            '{"prompt": "x", "chosen": 1, "rejected": 2}',
            'needs prompt, chosen, rejected; they are there, but not as they must be; row 0, chosen: "1" - chosen must '
            "be text; write it as a JSON string; see",
        ),
        (
            "a.csv",
            "instruction,completion\nx,y\n",
            "the nearest format, alpaca, needs instruction, chosen, rejected; missing: chosen, rejected",
        ),
        (
            "a.jsonl",
            '{"prompt": "x", "responses": ["y", "z"], "scores": [1, 2]}',
            r"rows must be preferences \(prompt, chosen, rejected\), but are of format candidates; their fields are p",
        ),
        ("a.jsonl", "not json", "no known schema; its fields are none"),
        (
            "a.jsonl",
            '{"prompt": "p", "response": "r"}',
            "read_instructions reads them, training takes them as --base.data",
        ),
        (
            "a.jsonl",
            '{"prompt": "p", "responses": ["r"]}',
            "read_candidates reads them, --method rrhf trains on",
        ),
        (
            "a.json",
            '{"train": [{"prompt": "p"}]}',
            "its rows are nested under 'train': write that list alone",
        ),
        ("a.csv", "What is it?,a thing\nWho?,you\n", "is the header missing. The first line of a CSV file names the"),
        ("a.csv", "prompt;chosen;rejected\np;a;b\n", r"separated by commas .* or tabs .*: are these by ';'\?; see"),
        ("a.json", '[{"prompt": 1},', "broken JSON array: .* line 1 column"),
        (
            "a.jsonl.gz",
            "not gzip",
            "must be gzip, as its name says, but its bytes are not; is it plain text, name",
        ),
        (
            "a.jsonl",
            '{"question": "a", "answer_good": "b", "answer_bad": "c"}',
            "fields are question, answer_good, answer_bad; needed are prompt, .* which: columns=",
        ),
        ("a.parquet", "not parquet", "cannot be read"),
        ("a.csv", "question,choosen\nx,y\n", "no known schema.*did you mean 'chosen'"),
        ("a.txt", "x", "must be .jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        scan_preferences(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "p", "chosen": NaN, "rejected": "r"}', "line 1: .*; NaN at column 27 is no JSON; write null; "),
        ('{"prompt": "p", "chosen": "c", "rejected": ', "line 1: a row must be one JSON object; EOF .*; mend the line"),
        ("[1, 2]", "line 1: a row must be one JSON object; .*expected a JSON object.*; mend the line"),
        ('{"prompt": "p", "chosen": "\\ud800", "rejected": "r"}', "row 0, chosen: .* - chosen must be valid Unicode; "),
        ('{"prompt": "p", "chosen": "c", "rejected": null}', "row 0, rejected: .* - rejected must be there and "),
        ('{"prompt": "p", "chosen": 1, "rejected": "r"}', 'row 0, chosen: "1" - chosen must be text; write it'),
        ('{"instruction": 5, "chosen": "c", "rejected": "r"}', 'row 0, instruction: "5" - instruction must be text; '),
        ('{"prompt": "p", "prompt": "q", "chosen": "c", "rejected": "r"}', "row 0, prompt: .* is there more than once"),
    ],
)
def test_where_all_first_rows_are_bad_the_first_is_named(tmp_path, row, said):
    (tmp_path / "a.jsonl").write_text(f"{row}\n" * 3)
    with pytest.raises(DataError, match=rf"a.jsonl: no known schema; .*; (row 0.*)?{said}.*; see"):
        scan_preferences(tmp_path / "a.jsonl")
    said = f"({said}|chosen and rejected are whole texts without a prompt)"
    with pytest.raises(DataError, match=rf"no row fits format 'preference'; .*; (row 0.*)?{said}.*; see"):
        scan_preferences(tmp_path / "a.jsonl", format="preference")


def test_where_no_row_of_a_later_file_fits_its_first_is_named(tmp_path):
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    (tmp_path / "a.jsonl").write_text(json.dumps(good))
    (tmp_path / "b.jsonl").write_text(json.dumps(good | {"chosen": 1}))
    with pytest.raises(DataError, match='read the two apart; row 1, chosen: "1" - chosen must be text'):
        scan_preferences([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])


def test_columns_of_another_type_are_reported_with_it(tmp_path):
    pl.DataFrame({"prompt": [1], "chosen": ["a"], "rejected": ["b"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"are there, but of another type \(prompt int64, chosen .*string, rejected"):
        scan_preferences(tmp_path / "a.parquet")


def test_a_missing_file_names_the_nearest(tmp_path):
    jsonl(tmp_path / "pairs.jsonl", [PLAIN])
    with pytest.raises(DataError, match=r"pair\.jsonl must be a file; there is none; did you mean 'pairs\.jsonl'"):
        scan_preferences(tmp_path / "pair.jsonl")


def test_addresses_and_hub_names_are_reported():
    with pytest.raises(DataError, match=r"a\.jsonl must be a file on this machine, not an address; download it"):
        scan_preferences("https://example.org/a.jsonl")
    with pytest.raises(DataError, match="there is none; if a data set of the hub is meant, download its files, or in"):
        scan_preferences("someone/pairs_binarized")


def test_a_forced_format_must_fit(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [PLAIN])
    assert scan_preferences(path, format="preference").frame.height == 1
    with pytest.raises(DataError, match="no row fits format 'hh'; its fields are prompt, chosen, rejected"):
        scan_preferences(path, format="hh")
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        scan_preferences(path, format="sharegtp")
    with pytest.raises(ConfigError, match="on_error must be"):
        read_preferences(path, on_error="ignore")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([None, *BAD]), min_size=1, max_size=20))
def test_no_row_goes_missing(kinds):
    objects = [(BAD[kind] if kind else PLAIN) for kind in [None, *kinds]]
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in objects)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"pyprefopt-rows-{os.getpid()}.jsonl"  # noqa: S108
    path.write_text(text)
    try:
        result = scan_preferences(path)
    finally:
        path.unlink()
    assert result.rows_in == len(objects) == result.frame.height + result.rejects.height
    expected = [kind for kind in [None, *kinds] if kind]
    assert result.rejects["reason"].equals(pl.Series("reason", expected, dtype=pl.String))
    both = pl.concat([result.frame["row"], result.rejects["row"]]).sort()
    assert both.equals(pl.Series("row", range(len(objects)), dtype=pl.UInt64))


# -- instructions


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("Hi"), assistant("Hello.")]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"prompt": "Hi", "response": "Hello."},
        {"prompt": [user("Hi")], "completion": [assistant("Hello.")]},
        {"instruction": "Hi", "input": "", "output": "Hello."},
    ],
)
def test_instructions(tmp_path, row):
    path = jsonl(tmp_path / "a.jsonl", [row, {**row, "prompt": "", "output": "", "messages": [], "conversations": []}])
    result = scan_instructions(path)
    assert only(result.frame, "prompt") == [("user", "Hi")]
    assert only(result.frame, "response") == [("assistant", "Hello.")]
    assert result.frame.columns == ["row", "prompt", "response"]
    assert result.rejects.height == 1
    with pytest.raises(DataError, match="1 of 2 rows"):
        read_instructions(path)
    assert read_instructions(path, on_error="skip").equals(result.frame)


def test_instruction_and_input_share_a_turn(tmp_path):
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert only(read_instructions(jsonl(tmp_path / "a.jsonl", [row])), "prompt") == [("user", "Add.\n\n1 2")]


# -- real data


def test_alpaca_pairs():
    path = shared("alpaca-pairs-test.parquet")
    result = scan_preferences(path)
    source = pl.read_parquet(path)
    assert (result.format, result.rows_in, result.rejects.height) == ("ultrafeedback", 1540, 0)
    last = source["chosen"].list.last().struct.field("content")
    assert result.frame["chosen"].list.last().struct.field("content").equals(last)
    assert result.frame["prompt"].list.first().struct.field("content").equals(source["prompt"])
    assert result.frame["prompt_id"].equals(source["prompt_id"])
    assert result.frame["score_chosen"].equals(source["score_chosen"].cast(pl.Float32))


def test_hh_rlhf():
    result = scan_preferences(shared("hh-rlhf-harmless.jsonl.gz"))
    assert (result.format, result.rows_in) == ("hh", 1500)
    bad = {86: "empty_response", 516: "empty_response", 925: "empty_response", 1103: "empty_response"}
    assert dict(result.rejects.select("row", "reason").iter_rows()) == bad | {1254: "diverging_chats"}
    assert result.frame.height == 1495
    roles = result.frame["prompt"].list.last().struct.field("role")
    assert (roles == "user").all()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sharegpt(language):
    path = shared(f"sharegpt-dpo-{language}.json.gz")
    result = scan_preferences(path)
    assert (result.format, result.frame.height, result.rejects.height) == ("sharegpt", 300, 0)
    source = json.loads(gzip.decompress(path.read_bytes()))
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    prompts = result.frame["prompt"]
    for row in range(0, 300, 25):
        expected = [(names[turn["from"]], turn["value"]) for turn in source[row]["conversations"]]
        assert [(m["role"], m["content"]) for m in prompts[row]] == expected
        assert result.frame["chosen"][row][0]["content"] == source[row]["chosen"]["value"]


def test_a_path_for_rejects_that_are_raised_is_refused(tmp_path):
    for read in (read_preferences, read_instructions):
        with pytest.raises(ConfigError, match="rejected_path must be left out with on_error 'raise', got 'x'"):
            read(tmp_path / "absent.jsonl", rejected_path="x")


def test_a_format_of_another_type_is_a_config_error():
    with pytest.raises(ConfigError, match=r"format must be auto or one of .*got 5"):
        read_preferences(pl.DataFrame({"prompt": ["a"]}), format=5)
