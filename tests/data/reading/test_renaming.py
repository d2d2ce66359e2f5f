"""Columns of other names, lists of files, and mixtures of them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt import data
from pyprefopt.data import _native
from pyprefopt.data.mixture import draw, largest_sizes, split_weights
from pyprefopt.data.reading.candidate_sets import open_candidates
from pyprefopt.data.reading.catalog import mapping_of
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.renaming import pairs_of
from pyprefopt.errors import ConfigError, DataError, on_command_line
from tests.data.prepared import write_tokenizer

OTHER = {"prompt": "question", "chosen": "good", "rejected": "bad"}
ROWS = [{"question": f"why {i}?", "good": f"because {i}", "bad": "no", "topic": i} for i in range(40)]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.gz")


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows in a file of any kind."""
    frame, kind = pl.DataFrame(rows), "".join(path.suffixes)
    if kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind in (".csv", ".tsv"):
        frame.write_csv(path, separator="\t" if kind == ".tsv" else ",")
    elif kind == ".parquet":
        frame.write_parquet(path)
    elif kind == ".arrow":
        frame.write_ipc(path)
    else:
        import gzip

        lines = frame.write_ndjson().encode()
        path.write_bytes(gzip.compress(lines) if kind.endswith(".gz") else lines)
    return str(path)


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ours = {theirs: name for name, theirs in OTHER.items()}
    return [{ours.get(name, name): value for name, value in row.items()} for row in rows]


# --- columns of other names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_renamed_rows_are_those_of_a_file_with_our_names(suffix: str, tmp_path: Path) -> None:
    theirs = written(tmp_path / f"theirs{suffix}", ROWS)
    ours = written(tmp_path / f"ours{suffix}", plain(ROWS))
    for columns in (OTHER, [f"{ours}={theirs}" for ours, theirs in OTHER.items()]):
        read = data.read_preferences(theirs, columns=columns)
        assert read.equals(data.read_preferences(ours))
    assert read["topic"].to_list() == list(range(40))


def test_tables_in_memory(tmp_path: Path) -> None:
    frame = pl.DataFrame(ROWS)
    wanted = data.read_preferences(pl.DataFrame(plain(ROWS)))
    for table in (frame, frame.to_arrow(), frame.lazy()):
        assert data.read_preferences(table, columns=OTHER).lazy().collect().equals(wanted)


def test_other_kinds_and_prepare(tmp_path: Path) -> None:
    rows = [{"q": "why?", "a": "because"}] * 3
    read = data.read_instructions(pl.DataFrame(rows), columns={"prompt": "q", "response": "a"})
    assert read.equals(data.read_instructions(pl.DataFrame([{"prompt": "why?", "response": "because"}] * 3)))
    sets = pl.DataFrame([{"q": "why?", "answers": ["a", "b"], "marks": [1.0, 0.0]}])
    read = data.read_candidates(sets, columns={"prompt": "q", "responses": "answers", "scores": "marks"})
    assert read["scores"].to_list() == [[1.0, 0.0]]
    tokenizer = data.load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))
    file = written(tmp_path / "pairs.jsonl", ROWS)
    ours = written(tmp_path / "ours.jsonl", plain(ROWS))
    folder = data.prepare(file, tokenizer, tmp_path / "a", columns=OTHER)
    assert folder.fingerprint == data.prepare(ours, tokenizer, tmp_path / "b").fingerprint
    assert folder.manifest["settings"]["columns"] == ["prompt=question", "chosen=good", "rejected=bad"]


def test_names_that_are_there_already_and_names_that_change_places(tmp_path: Path) -> None:
    rows = [{"prompt": "an id", "question": "why?", "chosen": "worse", "rejected": "better"}]
    columns = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
    for suffix in (".jsonl", ".parquet"):
        read = data.read_preferences(written(tmp_path / f"p{suffix}", rows), columns=columns)
        assert (read["chosen"][0][0]["content"], read["rejected"][0][0]["content"]) == ("better", "worse")
        assert read["prompt"][0][0]["content"] == "why?"
        assert read["source_prompt"].to_list() == ["an id"]


def test_bad_rows_keep_their_place(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[7]["good"] = ""
    with pytest.raises(DataError, match=r"p\.jsonl, row 7, chosen: "):
        data.read_preferences(written(tmp_path / "p.jsonl", rows), columns=OTHER)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["prompt"], "columns must be ours=yours, got 'prompt'; as prompt=question chosen=good rejected=bad"),
        (["=x"], "columns must be ours=yours, got '=x'"),
        (["promt=question"], r"columns: 'promt' is no name of ours, in 'promt=question'; did you mean 'prompt'\?"),
        (["question=prompt"], "columns: 'question' is no name of ours, in 'question=prompt'; write prompt=question"),
        (["prompt=a", "prompt=b"], "columns must be given once for each name of ours, got 'prompt'"),
        (["prompt=a,chosen=b"], "columns must be one ours=yours each, got 'prompt=a,chosen=b'; divide them by spaces"),
        (["prompt=a", "chosen=a"], "columns must be a column for one name each, got 'a'"),
        ({"prompt": 3}, "columns must be ours=yours, two names, got 'prompt=3'"),
    ],
)
def test_mappings_that_are_none(columns: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.read_preferences(pl.DataFrame(ROWS), columns=columns)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_a_column_that_is_not_there(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        data.read_preferences(written(tmp_path / f"p{suffix}", ROWS), columns=OTHER | {"chosen": "goood"})
    said = "there is no column 'goood' for chosen; did you mean 'good'?; the columns are question, good, bad, topic; "
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"question": "a", "good": "b", "bad": "c"}, "prompt=question chosen=good rejected=bad"),
        ({"bad": "c", "id": 1, "good": "b", "question": "a"}, "prompt=question chosen=good rejected=bad"),
        ({"prompt": "a", "winner": "b", "loser": "c"}, "chosen=winner rejected=loser"),
        ({"x1": "a", "x2": "b", "x3": "c", "n": 3}, "prompt=x1 chosen=x2 rejected=x3"),
        ({"Query": "a", "response_w": "b", "response_l": "c"}, "prompt=Query chosen=response_w rejected=response_l"),
        ({"text": "a"}, "ours=yours"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_error_writes_the_mapping_out(row: dict[str, Any], wanted: str, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"p{suffix}", [row] * 3)
    with on_command_line(), pytest.raises(DataError) as error:
        data.read_preferences(path)
    assert f"its fields are {', '.join(row)}" in str(error.value)
    assert "needed are prompt, chosen, rejected" in str(error.value)
    assert str(error.value).split("say which: ")[1].startswith(f"--columns {wanted}")
    if wanted != "ours=yours":
        assert data.read_preferences(path, columns=wanted.split()).height == 3  # it is what works
        mapping = dict(word.split("=") for word in wanted.split())
        with pytest.raises(DataError, match=re.escape(f"say which: columns={mapping}")):
            data.read_preferences(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c", 'q"', "é"]), JSON), max_size=4), st.booleans())
def test_renamed_lines_are_the_renamed_objects(rows: list[dict[str, Any]], escaped: bool) -> None:
    lines = "\n\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows).encode()
    pairs = [("a", "prompt"), ('q"', "chosen"), ("é", "b")]
    found = _native.rename_fields(lines, pairs).split(b"\n")
    assert len(found) == len(lines.split(b"\n"))
    new = dict(pairs)
    wanted = [{new.get(name, name): value for name, value in row.items()} for row in rows]
    assert [json.loads(line) for line in found if line] == wanted


# --- names of formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("HH", "did you mean 'hh'?"), ("trl", "did you mean 'preference'?"), ("sharegtp", "did you mean 'sharegpt'?"),
        ("hh-rlhf", "did you mean 'hh'?"), ("jsonl", "the kind of file is known by its name, leave format out"),
        ("Alpaca", "did you mean 'alpaca'?"), ("zzzz", "got 'zzzz'"),
    ],
)  # fmt: skip
def test_formats_that_are_none(name: str, says: str) -> None:
    from pyprefopt import configure

    with pytest.raises(ConfigError, match=r"^format must be auto or one of ") as error:
        data.read_preferences(pl.DataFrame(plain(ROWS)), format=name)
    assert str(error.value).endswith(says)
    with pytest.raises(ConfigError, match=r"^format must be auto or one of ") as error:
        configure(method="dpo", format=name)
    assert str(error.value).endswith(says)


def test_another_format_than_the_one_that_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", plain(ROWS))
    with pytest.raises(DataError, match=r"no row fits format 'shp'; .*; they are of format preference: leave format"):
        data.read_preferences(path, format="shp")


# --- lists and mixtures -------------------------------------------------------------------------------------------


def pairs(start: int, count: int, name: str) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {start + i}", "chosen": f"yes {i}", "rejected": "no", "of": name} for i in range(count)]


def prompts(frame: pl.DataFrame) -> list[str]:
    return [chat[0]["content"] for chat in frame["prompt"].to_list()]


@pytest.mark.parametrize("kinds", [(".json", ".jsonl"), (".jsonl", ".parquet"), (".csv", ".arrow"), (".csv", ".json")])
def test_a_list_takes_all_rows_of_every_file(kinds: tuple[str, str], tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}{kind}", pairs(0, 5, name)) for name, kind in zip("ab", kinds, strict=True)]
    read = data.read_preferences(files)
    assert prompts(read) == [f"a {i}" for i in range(5)] + [f"b {i}" for i in range(5)]
    assert read["of"].to_list() == ["a"] * 5 + ["b"] * 5
    assert read["row"].to_list() == list(range(10))


@pytest.mark.parametrize("kinds", [(".jsonl", ".jsonl"), (".jsonl", ".parquet"), (".csv", ".arrow")])
def test_a_mixture_draws_shares(kinds: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = written(tmp_path / f"a{kinds[0]}", pairs(0, 100, "a"))
    b = written(tmp_path / f"b{kinds[1]}", pairs(0, 30, "b"))
    mixed = data.read_preferences([f"{a}:0.7", f"{b}:0.3"])
    drawn = prompts(mixed)
    assert (len(drawn), len(set(drawn))) == (100, 100)  # the largest that fits, none twice
    assert [sum(name.startswith(one) for name in drawn) for one in "ab"] == [70, 30]
    whole = data.read_preferences([a, b])
    assert mixed.equals(whole.filter(pl.col("row").is_in(mixed["row"].implode())))  # with their places in the input
    assert mixed.equals(data.read_preferences([f"{a}:7", f"{b}:3"]))  # weights are shares
    other = open_source([f"{a}:0.7", f"{b}:0.3"], seed=1)
    assert other.mixture != open_source([f"{a}:0.7", f"{b}:0.3"]).mixture
    tokenizer = data.load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))
    with caplog.at_level(logging.INFO, "pyprefopt"):
        stores = [
            data.prepare([f"{a}:0.7", f"{b}:0.3"], tokenizer, tmp_path / name, seed=seed)
            for name, seed in (("x", 0), ("y", 0), ("z", 1))
        ]
    assert f"mixture: 70 of 100 rows of {a}, 30 of 30 rows of {b}" in caplog.messages
    assert stores[0].manifest["rows_in"] == 100
    assert stores[0].rows.tolist() == mixed["row"].to_list()
    assert stores[0].fingerprint == stores[1].fingerprint != stores[2].fingerprint
    assert data.prepare([f"{a}:0.7", f"{b}:0.3"], tokenizer, tmp_path / "x").fingerprint == stores[0].fingerprint


def test_a_small_file_makes_the_mixture_small(tmp_path: Path) -> None:
    a, b = (written(tmp_path / f"{name}.jsonl", pairs(0, count, name)) for name, count in (("a", 100), ("b", 10)))
    drawn = prompts(data.read_preferences([f"{a}:0.5", f"{b}:0.5"]))
    assert [sum(name.startswith(one) for name in drawn) for one in "ab"] == [10, 10]


def test_folders_and_globs_are_one_set(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for part in range(2):
            written(tmp_path / name / f"{part}.jsonl", pairs(50 * part, 50, name))
    drawn = prompts(data.read_preferences([f"{tmp_path}/a:0.5", f"{tmp_path}/b/*.jsonl:0.25"]))
    assert [sum(name.startswith(one) for name in drawn) for one in "ab"] == [100, 50]


def test_a_bad_row_of_a_mixture_keeps_its_line(tmp_path: Path) -> None:
    rows = pairs(0, 40, "a")
    for row in rows:
        row["chosen"] = ""
    a, b = written(tmp_path / "a.jsonl", rows), written(tmp_path / "b.jsonl", pairs(0, 20, "b"))
    with pytest.raises(DataError, match=r"^20 of 40 rows") as error:
        data.read_preferences([f"{a}:1", f"{b}:1"])
    kept = draw(40, 20, seed=0, number=0)
    assert f"row {kept.argmax()}," in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jsonl:0.5", "b.jsonl"], r"data must be given with a weight, as the others are, got 'b\.jsonl'"),
        (["a.jsonl:0.5"], r"data must be several files where one has a weight, got 'a\.jsonl:0\.5'"),
        (["a.jsonl:0.5,b.jsonl:0.5"], r"got 'a\.jsonl:0\.5,b\.jsonl:0\.5'; put spaces, not commas, between files"),
        (["a.jsonl:0", "b.jsonl:1"], r"data must be given with a weight > 0, got 'a\.jsonl:0'"),
        (["a.jsonl:-1", "b.jsonl:1"], r"data must be given with a weight > 0, got 'a\.jsonl:-1'"),
        (["a.jsonl:nan", "b.jsonl:1"], r"data must be given with a weight > 0, got 'a\.jsonl:nan'"),
        (["a.jsonl:inf", "b.jsonl:1"], r"data must be given with a weight > 0, got 'a\.jsonl:inf'"),
    ],
)
def test_weights_that_are_none(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_weights(names)


def test_names_with_colons_are_names(tmp_path: Path) -> None:
    path = written(tmp_path / "a:2.jsonl", pairs(0, 3, "a"))
    assert data.read_preferences(path).height == 3
    (tmp_path / "b.jsonl:3").write_text("")
    assert split_weights(str(tmp_path / "b.jsonl:3")) == (str(tmp_path / "b.jsonl:3"), None)
    assert split_weights("embedded:toy") == ("embedded:toy", None)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-3, 1e3)), min_size=1, max_size=5))
def test_sizes_are_the_largest_shares_that_fit(sets: list[tuple[int, float]]) -> None:
    counts, weights = zip(*sets, strict=True)
    sizes = largest_sizes(counts, weights)
    assert all(0 <= size <= count for size, count in zip(sizes, counts, strict=True))
    whole, total = sum(weights), min(c * sum(weights) / w for c, w in sets)
    assert all(abs(size - total * w / whole) <= 1 + 1e-6 for size, w in zip(sizes, weights, strict=True))
    assert any(size >= count - 1 for size, count in zip(sizes, counts, strict=True))  # one file is used up


def test_sets_of_one_response_a_row_are_not_drawn_from(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i // 2}", "response": f"r{i}", "score": float(i)} for i in range(8)]
    a, b = (written(tmp_path / f"{name}.jsonl", rows) for name in "ab")
    with pytest.raises(ConfigError, match="takes sets apart"):
        open_candidates([f"{a}:0.5", f"{b}:0.5"])
    assert open_candidates([a, b]).kind == "candidates"


def test_pairs_of_names() -> None:
    found = pairs_of(mapping_of(["prompt=question", "chosen=chosen"]))
    assert dict(found) == {"question": "prompt", "prompt": "source_prompt"}
