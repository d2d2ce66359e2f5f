"""Truncation against a slow twin, on text, segments and files."""

from __future__ import annotations

import gzip
import subprocess
import sys

import datasets
import duckdb
import polars as pl
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.data.tokenization.segments import load_tokenizer, tokenize
from pyprefopt.data.truncation.dispatch import truncate, truncate_column
from pyprefopt.errors import ConfigError, DataError
from tests.data.frames import MESSAGES, SHARED, alpaca, byte_tokenizer, chat, needs_shared, preferences
from tests.reference import cutting


@pytest.fixture(scope="module")
def byte_file(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def toy(byte_file):
    return load_tokenizer(byte_file, eos_token="</s>", chat_template="plain")


amounts = st.one_of(
    st.tuples(st.integers(1, 100).map(lambda percent: percent / 100), st.none()),
    st.tuples(st.none(), st.integers(1, 12)),
)
roundings = st.sampled_from(["ceil", "floor"])


def rounded(ratio, rounding):
    """`rounding=` where a ratio is rounded."""
    return {} if ratio is None else {"rounding": rounding}


def texts(unit, **sizes):
    """Text of the characters that the twin knows; for characters, any text."""
    alphabet = {"words": cutting.WORD_CLASSES, "sentences": cutting.SENTENCE_CLASSES}.get(unit)
    drawn = st.text(**sizes) if alphabet is None else st.text(sorted(alphabet), **sizes)
    return drawn.filter(lambda text: not text.startswith("\n\nHuman:"))  # transcripts are refused


@pytest.mark.parametrize("unit", ["characters", "words", "sentences"])
@settings(max_examples=150, deadline=None)
@given(data=st.data(), amount=amounts, rounding=roundings)
def test_units_equal_the_twin(unit, data, amount, rounding):
    text = data.draw(texts(unit, max_size=15 if unit == "characters" else 40))
    ratio, length = amount
    frame = pl.DataFrame({"chosen": [text]})
    out = truncate(frame, ratio=ratio, length=length, unit=unit, columns=["chosen"], **rounded(ratio, rounding))
    expected, cut = cutting.cut_text(text, unit, ratio, length, rounding)
    assert text.startswith(expected)
    assert out.to_dicts() == [{"chosen": expected, "chosen_cut": cut, "chosen_complete": cut == 0}]


@pytest.mark.parametrize("unit", ["characters", "words", "sentences"])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), percent=st.integers(1, 100), rounding=roundings)
def test_the_shortest_response_can_be_the_base(unit, data, percent, rounding):
    pair = data.draw(st.lists(st.none() | texts(unit, max_size=20), min_size=2, max_size=2))
    frame = pl.DataFrame(
        {"chosen": pair[:1], "rejected": pair[1:]}, schema={"chosen": pl.String, "rejected": pl.String}
    )
    options = {"ratio": percent / 100, "unit": unit, "rounding": rounding, "ratio_base": "shared_min"}
    out = truncate(frame, **options)
    base = min((len(cutting.unit_ends(text, unit)) for text in pair if text is not None), default=0)

    def expected(text):
        return (None, 0) if text is None else cutting.cut_text(text, unit, percent / 100, None, rounding, base)

    for name, text in zip(frame.columns, pair, strict=True):
        assert (out[name][0], out[f"{name}_cut"][0]) == expected(text)
    # a candidate set of the same texts
    sets = pl.DataFrame({"responses": [pair]}, schema={"responses": pl.List(pl.String)})
    got = truncate(sets, **options)
    want = [expected(text) for text in pair]
    assert list(zip(got["responses"][0], got["responses_cut"][0], strict=True)) == want
    assert got["responses_complete"][0].to_list() == [cut == 0 for _, cut in want]


@settings(max_examples=80, deadline=None)
@given(text=texts("tokens", min_size=1, max_size=10), amount=amounts, rounding=roundings)
def test_tokens_keep_whole_characters(byte_file, toy, text, amount, rounding):
    ratio, tokens = amount
    frame = pl.DataFrame({"chosen": [text]})
    out = truncate(frame, ratio=ratio, tokens=tokens, tokenizer=toy, columns=["chosen"], **rounded(ratio, rounding))
    result = out["chosen"][0]
    library = tokenizers.Tokenizer.from_file(str(byte_file))
    length = len(library.encode(text).ids)
    budget = cutting.kept(length, ratio, tokens, rounding)
    assert text.startswith(result)
    assert result
    spent = len(library.encode(result).ids)
    assert spent <= budget or len(result) == 1
    if len(result) < len(text):  # the next character would not have fitted
        assert len(library.encode(text[: len(result) + 1]).ids) > budget or spent == budget
    assert out["chosen_complete"][0] == (result == text)
    assert (out["chosen_cut"][0] > 0) == (result != text)
    assert out["chosen_cut"][0] == length - spent or result == text or spent > budget


def test_a_share_is_the_decimal_that_was_written():
    frame = pl.DataFrame({"chosen": ["x" * length for length in range(1, 201)]})
    for percent in range(1, 101):
        for rounding in ("ceil", "floor"):
            out = truncate(frame, ratio=percent / 100, unit="characters", rounding=rounding, columns=["chosen"])
            expected = [cutting.kept(length, percent / 100, None, rounding) for length in range(1, 201)]
            assert out["chosen"].str.len_chars().to_list() == expected


def test_chats_are_cut_in_their_last_message(toy):
    turns = chat(("assistant", "abc"), ("tool", "abc", '{"name": "t"}'), ("assistant", "abcd"))
    frame = pl.DataFrame(
        {
            "chosen": pl.Series([turns, None, [], chat(("assistant", "ab"))], dtype=MESSAGES),
            "other": [1, 2, 3, 4],
        }
    )
    for sliced in (frame, pl.concat([frame.clear(), frame[:1], frame[1:]], rechunk=False)):
        out = truncate(sliced, length=2, unit="characters", columns=["chosen"])
        expected = [*turns[:2], {**turns[2], "content": "ab"}]
        assert out["chosen"].to_list() == [expected, None, [], chat(("assistant", "ab"))]
        assert out["chosen_complete"].to_list() == [False, True, True, True]
        assert out["chosen_cut"].to_list() == [2, 0, 0, 0]
        assert out.schema == {**frame.schema, "chosen_cut": pl.UInt32, "chosen_complete": pl.Boolean}
    assert truncate(frame[3:], length=1, unit="characters", columns=["chosen"])["chosen"].to_list() == [
        chat(("assistant", "a"))
    ]


def test_a_cut_response_stays_incomplete():
    frame = pl.DataFrame({"chosen": ["ab", "ab"], "chosen_complete": [False, True]})
    out = truncate(frame, length=2, unit="characters", columns=["chosen"])
    assert out["chosen_complete"].to_list() == [False, True]


def test_segments_count_content_and_lose_the_end_of_turn(toy):
    frame = preferences(("why why why", "cdefgh", "c"))
    segments = tokenize(frame, toy).with_columns(scores=pl.col("ids").cast(pl.List(pl.Float32)))
    out = truncate(segments, ratio=0.5)
    assert out["cut"].to_list() == [0, 3, 0]
    assert out.schema == {**segments.schema, "cut": pl.UInt32}
    assert out.drop("cut")[0].equals(segments.drop("cut", strict=False)[0])
    assert out.drop("cut")[2].equals(segments.drop("cut", strict=False)[2])  # one token is the least: nothing is cut
    for name in ("ids", "mask", "starts", "ends", "turns", "scores"):
        assert out[name].to_list()[1] == segments[name].to_list()[1][:4]  # the space and three of six
    # cut ids are what the cut text has
    text = truncate(frame, ratio=0.5, tokenizer=toy)
    assert tokenize(text, toy)["ids"].to_list() == out["ids"].to_list()


def slow_segments(segments, ratio, base, cut_end, eos):
    """Rows of the segments, cut."""
    content = [[m and s is not None for m, s in zip(line["mask"], line["starts"], strict=True)] for line in segments]
    rows = {line["row"] for line in segments}
    lengths = {
        row: min(sum(c) for c, line in zip(content, segments, strict=True) if line["row"] == row and line["segment"])
        for row in rows
    }
    out = []
    for line, is_content in zip(segments, content, strict=True):
        own = sum(is_content)
        left = cutting.kept(own, ratio, None, "ceil", lengths[line["row"]] if base == "shared_min" else None)
        new = dict(line)
        if left < own:
            places = [i for i, c in enumerate(is_content) if c]
            keep = list(range(places[left - 1] + 1))
            keep += range(places[-1] + 1, len(is_content)) if cut_end == "template" else []
            extra = {"ids": eos, "mask": True, "starts": None, "ends": None, "turns": line["turns"][places[left - 1]]}
            for name, value in extra.items():
                new[name] = [line[name][i] for i in keep] + ([value] if cut_end == "eos" else [])
        new["cut"] = line["cut"] + own - left
        out.append(new)
    return out


words = st.tuples(st.sampled_from("abc"), st.text("abc ", max_size=5)).map("".join)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@pytest.mark.parametrize("cut_end", ["none", "template", "eos"])
@pytest.mark.parametrize("base", ["own", "shared_min"])
@settings(max_examples=25, deadline=None)
@given(pairs=pairs, percent=st.integers(5, 100))
def test_segments_equal_the_twin(toy, cut_end, base, pairs, percent):
    segments = tokenize(preferences(*(("why", a, b + "!") for a, b in pairs)), toy)
    segments = segments.with_columns(cut=pl.int_range(pl.len(), dtype=pl.UInt32))  # what there was is added to
    options = {"ratio": percent / 100, "ratio_base": base, "cut_end": cut_end}
    out = truncate(segments, **options, tokenizer=toy)
    assert out.to_dicts() == slow_segments(segments.to_dicts(), percent / 100, base, cut_end, toy.eos_token_id)
    chunks = pl.concat([segments[:1], segments[1:]], rechunk=False)
    for engine in ("in-memory", "streaming"):
        assert truncate(chunks.lazy(), **options, tokenizer=toy).collect(engine=engine).equals(out)


def test_an_appended_eos_has_no_score(toy):
    segments = tokenize(preferences(("why", "abab", "ab")), toy)
    scored = segments.with_columns(scores=pl.col("ids").cast(pl.List(pl.Float32)))
    with pytest.raises(ConfigError, match=r"cut_end must be 'none' or 'template' beside \['scores'\], got 'eos'"):
        truncate(scored, ratio=0.5, cut_end="eos", tokenizer=toy)
    with pytest.raises(ConfigError, match="cut_end 'eos' needs a tokenizer"):
        truncate(segments, ratio=0.5, cut_end="eos")


def test_text_cut_with_the_templates_end_stays_complete(toy):
    frame = preferences(("why", "cdef", "xy"))
    out = truncate(frame, length=2, unit="characters", cut_end="template")
    assert out.select("chosen_complete", "rejected_complete", "chosen_cut", "rejected_cut").row(0) == (True, True, 2, 0)
    ended = truncate(tokenize(frame, toy), tokens=2, cut_end="template")
    assert tokenize(out, toy)["ids"].to_list() == ended["ids"].to_list()


def test_cutting_again_adds_up():
    frame = pl.DataFrame({"chosen": ["abcdef"], "responses": [["abc", "a"]]})
    for column, counts in (("chosen", [4]), ("responses", [[2, 0]])):
        once = truncate(frame, length=2, unit="characters", columns=[column])
        twice = truncate(once, length=1 if column == "responses" else 2, unit="characters", columns=[column])
        assert twice[f"{column}_cut"].to_list() == counts
        assert once.schema == twice.schema
    assert twice["responses_complete"].to_list() == [[False, True]]


def test_an_arrow_table_gives_one():
    table = pl.DataFrame({"chosen": ["a b"], "rejected": ["c"]}).to_arrow()
    out = truncate(table, length=1, unit="words")
    assert out.to_pylist()[0]["chosen"] == "a"
    for other in (table, duckdb.from_arrow(table), datasets.Dataset(table)):
        same = truncate(other, length=1, unit="words")
        assert isinstance(same, pa.Table)
        assert same.to_pylist() == out.to_pylist()
    with pytest.raises(DataError, match="got list"):
        truncate([1], length=1, unit="words")


def test_segments_without_offsets_count_the_mask():
    frame = pl.DataFrame({"ids": [[1, 2, 3, 4]], "mask": [[False, True, True, True]]})
    assert truncate(frame, tokens=2)["ids"].to_list() == [[1, 2, 3]]


@needs_shared
def test_real_responses_lazy_streaming_and_eager(tmp_path):
    path = SHARED / "tokenizers" / "gpt-neox-20b.json"
    tokenizer = load_tokenizer(path, eos_token="<|endoftext|>", chat_template="plain")
    frame = alpaca(40)
    expected = truncate(frame, ratio=0.4, tokenizer=path)
    for engine in ("in-memory", "streaming"):
        lazy = truncate(frame.lazy(), ratio=0.4, tokenizer=tokenizer)
        assert isinstance(lazy, pl.LazyFrame)
        assert lazy.collect_schema() == expected.schema
        assert lazy.collect(engine=engine).equals(expected)
    contents = pl.col("chosen").list.last().struct.field("content")
    before, after = (tokenizer.encode(f.select(contents)["content"]).list.len() for f in (frame, expected))
    limits = [cutting.kept(length, 0.4, None, "ceil") for length in before]
    assert all(length <= limit for length, limit in zip(after, limits, strict=True))
    assert sum(after) > 0.99 * sum(limits)
    segments = tokenize(frame, tokenizer)
    cut = truncate(segments, ratio=0.4)
    assert truncate(segments.lazy(), ratio=0.4).collect(engine="streaming").equals(cut)
    content = pl.col("starts").list.drop_nulls().list.len()
    sizes = zip(segments.select(content)["starts"], cut.select(content)["starts"], segments["kind"], strict=True)
    assert all(a == (b if kind == "prompt" else cutting.kept(b, 0.4, None, "ceil")) for b, a, kind in sizes)


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_packed_text_files(tmp_path, kind, packing):
    frame = pl.DataFrame({"chosen": ["abcd", "x"] * 2000})
    suffix = kind + {"gzip": ".gz", "zstd": ".zst"}[packing]
    write, read = (
        (pl.DataFrame.write_ndjson, pl.read_ndjson) if kind == ".jsonl" else (pl.DataFrame.write_csv, pl.read_csv)
    )
    write(frame, tmp_path / "plain")
    with pa.CompressedOutputStream(str(tmp_path / f"pairs{suffix}"), packing) as stream:
        stream.write((tmp_path / "plain").read_bytes())
    options = {"length": 2, "unit": "characters", "columns": ["chosen"]}
    written = truncate(tmp_path / f"pairs{suffix}", **options)
    assert written == tmp_path / f"pairs.truncated{suffix}"
    with pa.CompressedInputStream(pa.OSFile(str(written)), packing) as stream:
        (tmp_path / "unpacked").write_bytes(stream.read())
    assert read(tmp_path / "unpacked")["chosen"].to_list() == ["ab", "x"] * 2000
    plain = truncate(written, **options, out=tmp_path / f"plain{kind}")
    assert plain.read_bytes() == (tmp_path / "unpacked").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_cut_gzip_file_is_reported(tmp_path):
    packed = gzip.compress(b'{"chosen": "abcd"}\n' * 20000)
    (tmp_path / "pairs.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"pairs.jsonl.gz cannot be read as .jsonl \(gzip\): .*cut short"):
        truncate(tmp_path / "pairs.jsonl.gz", length=2, unit="characters", columns=["chosen"])
    members = gzip.compress(b'{"chosen": "abcd"}\n') + gzip.compress(b'{"chosen": "efgh"}\n')
    (tmp_path / "two.jsonl.gz").write_bytes(members)
    out = truncate(tmp_path / "two.jsonl.gz", length=1, unit="characters", columns=["chosen"], out=tmp_path / "o.csv")
    assert pl.read_csv(out)["chosen"].to_list() == ["a", "e"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.csv", "pairs.jsonl.gz", "two.jsonl.gz"]


def test_folders_and_patterns_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(DataError, match="not a folder or pattern; call this once for each file"):
            truncate(path, length=2, unit="characters")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".arrow", ".feather"])
def test_files_come_back_as_files(tmp_path, suffix):
    frame = pl.DataFrame({"prompt": ["1", "2"], "chosen": ["abcd", "x,\n"], "rejected": ["12345", "y"]})
    path = tmp_path / f"pairs{suffix}"
    write, read = {
        ".parquet": ("write_parquet", pl.read_parquet),
        ".jsonl": ("write_ndjson", pl.read_ndjson),
        ".csv": ("write_csv", lambda file: pl.read_csv(file, infer_schema=False)),
    }.get(suffix, ("write_ipc", pl.read_ipc))
    getattr(frame, write)(path)
    written = truncate(path, length=2, unit="characters")
    assert written == tmp_path / f"pairs.truncated{suffix}"
    assert isinstance(truncate(str(path), length=2, unit="characters", out=tmp_path / "o.parquet"), str)
    for out in (read(written), pl.read_parquet(tmp_path / "o.parquet")):
        assert out["chosen"].to_list() == ["ab", "x,"]
        assert out["rejected"].to_list() == ["12", "y"]
        flags = out.select(pl.col("^.*_complete$").cast(pl.String))
        assert flags.to_dict(as_series=False) == {
            "chosen_complete": ["false", "false"],
            "rejected_complete": ["false", "true"],
        }
        cut = out.select(pl.col("^.*_cut$").cast(pl.UInt32))
        assert cut.to_dict(as_series=False) == {"chosen_cut": [2, 1], "rejected_cut": [3, 0]}
    again = truncate(written, length=9, unit="characters", out=tmp_path / f"again{suffix}")
    assert read(again).select(pl.col("rejected_complete").cast(pl.String)).to_series().to_list() == ["false", "true"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "^truncate must be given exactly one of ratio, length and tokens, got none$"),
        ({"ratio": 0.5, "length": 3}, "exactly one of ratio, length and tokens, got ratio 0.5 and length 3$"),
        ({"ratio": 0.5, "tokens": 3}, "exactly one of ratio, length"),
        ({"tokens": 3, "length": 3}, "exactly one of ratio, length and tokens, got length 3 and tokens 3"),
        ({"ratio": 0.0}, r"ratio must be in \(0, 1\]"),
        ({"length": 0}, "length must be > 0"),
        ({"tokens": 0}, "tokens must be > 0"),
        ({"tokens": 1, "unit": "words"}, "unit must be 'tokens' with tokens, got 'words'; give length 1 instead"),
        ({"length": 1, "unit": "lines"}, "unit must be one of tokens, characters, words, sentences, got 'lines'"),
        ({"tokens": 1, "rounding": "half_up"}, "rounding must be one of ceil, floor"),
        ({"tokens": 1, "rounding": "ceil"}, "rounding must be left out without ratio, got 'ceil'; only a ratio"),
        (
            {"length": 1, "unit": "words", "tokenizer": "t"},
            "tokenizer must be left out with unit 'words', got 't'; leave",
        ),
        ({"ratio": "0.5"}, "ratio must be a number, got '0.5'"),
        ({"length": 1.5}, "length must be a whole number, got 1.5"),
        ({"length": 1, "unit": "words", "columns": 5}, "columns must be the names of the columns to cut, got 5"),
        (
            {"length": 1, "tokenizer": 5},
            "tokenizer must be a folder, a tokenizer.json, a hub name, or .*got one of type int$",
        ),
        ({"tokens": 1, "ratio_base": "shared_min"}, "ratio_base must be left out without ratio"),
        ({"ratio": 0.5, "ratio_base": "min"}, "ratio_base must be one of own, shared_min"),
        ({"ratio": 0.5, "cut_end": "bos"}, "cut_end must be one of none, eos, template"),
        ({"ratio": 0.5, "cut_end": "eos"}, "'none' or 'template' for text, .*tokenize first"),
        ({"tokens": 1}, "needs a tokenizer"),
        ({"length": 1, "unit": "characters", "out": "x"}, "out must be"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        truncate(pl.DataFrame({"chosen": ["a"], "rejected": ["b"]}), **options)


def test_wrong_columns_and_files_are_reported(tmp_path, toy):
    frame = pl.DataFrame({"chosen": ["a"], "number": [1]})
    with pytest.raises(DataError, match="no column 'rejected'"):
        truncate(frame, length=1, unit="characters")
    with pytest.raises(DataError, match="'number' must hold strings"):
        truncate(frame, length=1, unit="characters", columns=["number"])
    with pytest.raises(DataError, match="must be a file; there is none; check the path"):
        truncate(tmp_path / "absent.parquet", length=1, unit="characters")
    (tmp_path / "pairs.txt").write_text("")
    with pytest.raises(ConfigError, match=r"file must be \.jsonl, \.json, \.csv"):
        truncate(tmp_path / "pairs.txt", length=1, unit="characters")
    frame.write_csv(tmp_path / "p.csv")
    with pytest.raises(ConfigError, match="another file than the input"):
        truncate(tmp_path / "p.csv", length=1, unit="characters", out=tmp_path / "p.csv")
    segments = pl.DataFrame({"ids": [[1, 2]], "mask": [[True, True]], "starts": [[0]]})
    with pytest.raises(ConfigError, match="columns must be left out for a frame of token ids"):
        truncate(segments, length=1, columns=["ids"])
    with pytest.raises(ConfigError, match="tokenizer must be left out for lists"):
        truncate_column(segments["ids"], length=1, tokenizer=toy)
    views = pa.table({"chosen": pa.array([["a"]], pa.list_view(pa.string())), "rejected": ["b"]})
    with pytest.raises(DataError, match=r"the table cannot be read .*cast the column"):
        truncate(views, length=1, unit="words")
    with pytest.raises(ConfigError, match="unit must be 'tokens'"):
        truncate(segments, length=1, unit="characters")


def test_truncation_loads_no_torch(byte_file):
    program = (
        "import sys, polars as pl; from pyprefopt.data import truncate\n"
        "frame = pl.DataFrame({'chosen': ['c d']})\n"
        f"out = truncate(frame, tokens=1, tokenizer={str(byte_file)!r}, columns=['chosen'])\n"
        "assert out['chosen'][0] == 'c', out\n"
        "print({'torch', 'transformers', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_transcripts_are_refused_since_their_beginning_is_the_prompt():
    frame = pl.DataFrame({"chosen": ["\n\nHuman: a\n\nAssistant: b"], "rejected": ["\n\nHuman: a\n\nAssistant: c"]})
    with pytest.raises(DataError, match="holds transcripts"):
        truncate(frame, length=1, unit="words")


def test_half_a_surrogate_pair_in_a_file_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"chosen": "a \\\\ud800", "rejected": "b \\ud83d\\ude00"}\n{"chosen": "a \\ud800", "rejected": "b"}\n'
    )
    with pytest.raises(DataError, match="line 2, field 'chosen': half a surrogate pair"):
        truncate(path, length=1, unit="words")
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.parquet", b"PAR1 no footer PAR1"), ("a.jsonl", b'{"chosen": "cut sh'), ("b.jsonl", b"")]
)
def test_a_damaged_file_is_a_data_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        truncate(tmp_path / name, length=1, unit="words")


def test_one_column_may_be_named_alone_and_none_is_refused():
    frame = pl.DataFrame({"chosen": ["a b"], "rejected": ["c d"]})
    assert truncate(frame, length=1, unit="words", columns="chosen").row(0) == ("a", "c d", 1, False)
    with pytest.raises(ConfigError, match="columns"):
        truncate(frame, length=1, unit="words", columns=[])


@pytest.mark.parametrize("given", [{"ratio": "0.5"}, {"length": 1.5}, {"length": 10**30}])
def test_numbers_of_another_kind_are_config_errors(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        truncate(pl.DataFrame({"chosen": ["a"], "rejected": ["b"]}), unit="words", **given)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_columns_of_other_names_are_cut_as_reading_takes_them(suffix, tmp_path):
    frame = pl.DataFrame({"question": ["a b c"], "good": ["a b c d"], "bad": ["a b"]})
    path = tmp_path / f"p{suffix}"
    {".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet, ".csv": frame.write_csv}[suffix](path)
    columns = ["prompt=question", "chosen=good", "rejected=bad"]
    out = truncate(path, ratio=0.5, unit="words", columns=columns)
    read = {".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet, ".csv": pl.read_csv}[suffix](out)
    assert read["question", "good", "bad"].row(0) == ("a b c", "a b", "a")
    named = truncate(frame, ratio=0.5, unit="words", columns={"chosen": "good", "rejected": "bad"})
    assert named["question", "good", "bad"].row(0) == ("a b c", "a b", "a")
    with pytest.raises(ConfigError, match="columns must be with a response, got"):
        truncate(path, ratio=0.5, unit="words", columns=["prompt=question"], overwrite=True)


def test_texts_that_are_kept_once_are_texts(tmp_path):
    pairs = pl.DataFrame(
        {"prompt": ["a", "a"], "chosen": ["b c d", "e"], "rejected": ["f g", "f g"], "kind": ["x", "y"]}
    )
    encoded = pairs.with_columns(pl.all().cast(pl.Categorical))
    cut = truncate(encoded, ratio=0.5, unit="words")
    assert cut.drop("kind").equals(truncate(pairs, ratio=0.5, unit="words").drop("kind"))
    assert cut["kind"].dtype == pl.Categorical
    encoded.write_parquet(tmp_path / "pairs.parquet")
    written = pl.read_parquet(truncate(tmp_path / "pairs.parquet", ratio=0.5, unit="words"))
    assert written["chosen"].cast(pl.String).to_list() == cut["chosen"].to_list()


def test_a_column_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(
        DataError, match=r"no column 'chosen'; did you mean 'chose'\?; pass columns='…', .* there are chose"
    ):
        truncate(pl.DataFrame({"chose": ["a"], "rejected": ["b"]}), ratio=0.5, unit="words")
