"""Segments against a slow twin in Python, ids against the `tokenizers` library, and the rules row by row."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import pyprefopt
from pyprefopt.data.reading.rejects import REJECTS
from pyprefopt.data.tokenization.render import SHIPPED, read_chat_template
from pyprefopt.data.tokenization.segments import SEGMENTS, load_tokenizer, tokenize, tokenize_rows
from pyprefopt.errors import ConfigError, DataError
from tests.data.frames import (
    MESSAGES,
    REAL_TOKENIZERS,
    SHARED,
    alpaca,
    byte_tokenizer,
    chat,
    needs_shared,
    preferences,
    trl_templates,
    word_tokenizer,
)
from tests.data.jinja import FAMOUS

EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def byte_file(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def toy(byte_file):
    return load_tokenizer(byte_file, eos_token="</s>", chat_template="plain")


@pytest.fixture(scope="module")
def bos_file(tmp_path_factory, byte_file):
    """The byte tokenizer with a BOS token."""
    folder = tmp_path_factory.mktemp("bos")
    (folder / "tokenizer.json").write_bytes(byte_file.read_bytes())
    tokens = {"eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


def real(name, template="plain"):
    return load_tokenizer(SHARED / "tokenizers" / f"{name}.json", eos_token=EOS, chat_template=template)


def column(result, kind, name):
    return result.segments.filter(kind=kind)[name].to_list()


def twin(library, tokenizer, row, max_tokens=None):
    """Segments of one row, slowly: characters, one response at a time. Responses only: ids, mask, starts, ends."""
    prompt = tokenizer.render(row["prompt"], add_generation_prompt=True)
    lines = []
    for side in ("chosen", "rejected"):
        content = row[side][-1]["content"]
        full = tokenizer.render([*row["prompt"], *row[side]])
        begin = full.index(content, len(prompt))
        end = begin + len(content)
        stop = len(full.rstrip()) if row[f"{side}_complete"] else end
        encoding = library.encode(full[: len(full) if row[f"{side}_complete"] else end], add_special_tokens=False)
        offsets = widened(encoding, full)
        if any(s < len(prompt) < e for s, e in offsets):
            encoding = library.encode(
                full[len(prompt) : None if row[f"{side}_complete"] else end], add_special_tokens=False
            )
            offsets = [(s + len(prompt), e + len(prompt)) for s, e in widened(encoding, full[len(prompt) :])]
        line = {"ids": [], "mask": [], "starts": [], "ends": []}
        for index, (s, e) in zip(encoding.ids, offsets, strict=True):
            if not len(prompt) <= s < stop:
                continue
            inside = s < end and e > begin
            line["ids"].append(index)
            line["mask"].append(inside or s >= end)
            at = [len(full[begin : min(max(x, begin), end)].encode()) if inside else None for x in (s, e)]
            line["starts"].append(at[0])
            line["ends"].append(at[1])
        lines.append(line)
    return lines


def widened(encoding, text):
    """The library trims spaces off its offsets; a token begins where the one before ends."""
    offsets, last = [], 0
    for s, e in encoding.offsets:
        start = s if s < last else last
        offsets.append((start, e))
        last = e
    return offsets


@needs_shared
@pytest.mark.parametrize("template", ["plain", "chatml"])
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_real_pairs_equal_the_twin(name, template):
    tokenizer = real(name, template)
    library = tokenizers.Tokenizer.from_file(str(SHARED / "tokenizers" / f"{name}.json"))
    frame = alpaca(25).with_columns(chosen_complete=pl.col("row") % 3 != 0)
    result = tokenize_rows(frame, tokenizer)
    assert result.rejects.is_empty()
    for row in frame.to_dicts():
        lines = result.segments.filter(row=row["row"]).to_dicts()
        assert [line["kind"] for line in lines] == ["prompt", "chosen", "rejected"]
        assert [line["segment"] for line in lines] == [0, 1, 2]
        assert [line["score"] for line in lines] == [None, row["score_chosen"], row["score_rejected"]]
        for line, expected in zip(lines[1:], twin(library, tokenizer, row), strict=True):
            assert {key: line[key] for key in expected} == expected
        assert not any(lines[0]["mask"])


@needs_shared
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_ids_equal_the_library_and_renderings_equal_transformers(name, tmp_path):
    tokenizer = real(name, "chatml")
    library = tokenizers.Tokenizer.from_file(str(SHARED / "tokenizers" / f"{name}.json"))
    contents = alpaca(40)["chosen"].list.last().struct.field("content")
    texts = pl.concat([contents, pl.Series(["", "  x\n\n\n", "中文 🙂 e\u0301", EOS, "a" * 100])])
    assert tokenizer.encode(texts).to_list() == [library.encode(t, add_special_tokens=False).ids for t in texts]
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(texts.to_list(), add_special_tokens=False)["input_ids"] == tokenizer.encode(texts).to_list()
    messages = chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
    for add in (False, True):
        rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        assert rendered == tokenizer.render(messages, add_generation_prompt=add)
    assert (theirs.eos_token, theirs.eos_token_id, theirs.pad_token) == (EOS, tokenizer.eos_token_id, EOS)


def test_saved_directories_load_on_both_sides(byte_file, tmp_path):
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(byte_file), bos_token="<s>", eos_token="</s>", pad_token="<s>")
    theirs.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_tokenizer(tmp_path / "theirs")
    assert (ours.bos_token, ours.eos_token, ours.vocab_size) == ("<s>", "</s>", len(theirs))
    assert ours.render(chat(("user", "ab"))) == "<s>ab</s>"
    ours.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert again.special_tokens == ours.special_tokens
    assert again.fingerprint == ours.fingerprint
    back = AutoTokenizer.from_pretrained(tmp_path / "ours")
    ids = back.apply_chat_template(chat(("user", "ab")), tokenize=True, return_dict=False)
    assert ids == ours.encode(pl.Series(["<s>ab</s>"])).to_list()[0]
    assert (back.pad_token_id, back.bos_token_id, back.eos_token_id) == (
        ours.bos_token_id,
        ours.bos_token_id,
        ours.eos_token_id,
    )


def test_a_vocabularys_word_becomes_special_when_named_eos(tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"end": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    library.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json", eos_token="end", chat_template="plain")
    assert tokenizer.encode(pl.Series(["aend"])).to_list() == [[1, 0]]


def test_fingerprint_sees_every_part(byte_file, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    prints = {
        load_tokenizer(byte_file, eos_token=eos, chat_template=template).fingerprint
        for eos in ("</s>", "<s>")
        for template in ("plain", "chatml", tmp_path / "t.jinja")
    }
    assert len(prints) == 6


def test_encode_takes_arrow_and_chunks(toy):
    ids = toy.encode(pl.Series(["ab", "", "é"])).to_list()
    chunked = pl.concat([pl.Series(["ab"]), pl.Series(["", "é"])], rechunk=False)
    assert chunked.n_chunks() == 2
    assert toy.encode(chunked).to_list() == ids
    assert toy.encode(pa.chunked_array([["ab"], ["", "é"]])).to_list() == ids
    assert toy.encode(pa.array(["ab", "", "é"])).to_list() == ids
    assert toy.encode(pl.Series([], dtype=pl.String)).to_list() == []
    assert toy.encode(pa.chunked_array([], type=pa.string())).to_list() == []
    assert [len(i) for i in ids] == [1, 0, 2]


def test_one_row_in_full(toy):
    result = tokenize_rows(preferences(("why", "b é", " ab"), score_chosen=pl.Series([2.0])), toy)
    texts = [toy.encode(pl.Series([t])).to_list()[0] for t in ("User: why\n\nAssistant:", " b é</s>", "  ab</s>")]
    assert result.segments["ids"].to_list() == texts
    assert column(result, "chosen", "mask") == [[False] + [True] * 5]
    assert column(result, "chosen", "starts") == [[None, 0, 1, 2, 2, None]]
    assert column(result, "chosen", "ends") == [[None, 1, 2, 4, 4, None]]
    assert column(result, "chosen", "turns") == [[1] * 6]
    assert column(result, "rejected", "starts") == [[None, 0, 2, None]]
    assert column(result, "prompt", "turns") == [[0] * len(texts[0])]
    starts = column(result, "prompt", "starts")[0]
    assert [s for s in starts if s is not None] == [0, 1, 2]
    assert result.segments["score"].to_list() == [None, 2.0, None]
    assert result.segments.schema == SEGMENTS


def test_incomplete_responses_have_no_end_of_turn(toy):
    frame = preferences(("why", "b ", "c"), chosen_complete=pl.Series([False]))
    result = tokenize_rows(frame, toy)
    assert column(result, "chosen", "ids") == [toy.encode(pl.Series([" b "])).to_list()[0]]
    assert column(result, "rejected", "ids")[0][-1] == toy.eos_token_id


def test_what_follows_the_end_of_turn_is_not_stored(byte_file):
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template="chatml")
    ids = column(tokenize_rows(preferences(("why", "b", "c")), tokenizer), "chosen", "ids")[0]
    assert ids == tokenizer.encode(pl.Series(["b<|im_end|>"])).to_list()[0]


def test_content_is_found_where_it_repeats_what_the_template_writes(byte_file):
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template="chatml")
    frame = preferences(("assistant", "im_end", "|"), ("user", "e", "<|im_end|>"))
    for line in tokenize_rows(frame, tokenizer).segments.filter(pl.col("segment") > 0).to_dicts():
        assert line["starts"][0] == 0
        content = frame[line["kind"]].to_list()[line["row"]][-1]["content"]
        assert max(e for e in line["ends"] if e is not None) == len(content)
        assert len(line["ids"]) == len(content + "<|im_end|>")


def test_trimmed_content_keeps_the_datas_offsets(byte_file, tmp_path):
    (tmp_path / "trim.jinja").write_text("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "trim.jinja")
    frame = preferences(("why", "  ab c  ", "x\n"))
    result = tokenize_rows(frame, tokenizer)
    assert result.rejects["reason"].to_list() == []
    assert column(result, "chosen", "starts") == [[None, 2, 4, 5, None]]
    assert column(result, "rejected", "ends") == [[None, 1, None]]
    assert column(result, "chosen", "mask") == [[False, True, True, True, True]]


def test_turns_of_a_long_chat(toy):
    frame = preferences(("", "b", "c")).with_columns(
        prompt=pl.Series([chat(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))], dtype=MESSAGES),
        chosen=pl.Series([chat(("assistant", "b"), ("user", "w"), ("assistant", "x"))], dtype=MESSAGES),
    )
    result = tokenize_rows(frame, toy)
    lengths = [len(t) for t in ("System: s", "\n\nUser: u", "\n\nAssistant: a", "\n\nUser: v\n\nAssistant:")]
    # " a" is one token, and so is </s>
    assert column(result, "prompt", "turns")[0] == [t for t, n in enumerate(lengths) for _ in range(n)]
    turns = column(result, "chosen", "turns")[0]
    assert sorted(set(turns)) == [4, 5, 6]
    content = [t for t, s in zip(turns, column(result, "chosen", "starts")[0], strict=True) if s is not None]
    assert content == [6]
    assert column(result, "rejected", "turns")[0] == [4, 4, 4]


def test_extras_tools_and_settings_reach_the_template(byte_file, tmp_path):
    source = "{{ tools[0].name if tools }}{{ mood }}{% for m in messages %}({{ m.name }}){{ m.content }}{% endfor %}"
    (tmp_path / "t.jinja").write_text(source)
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "t.jinja")
    frame = preferences(("why", "b", "c")).with_columns(
        prompt=pl.Series([chat(("user", "why", '{"name": "Ann"}'))], dtype=MESSAGES),
        tools=pl.Series(['[{"name": "clock"}]']),
        template_kwargs=pl.Series(['{"mood": "!"}']),
    )
    ids = column(tokenize_rows(frame, tokenizer), "prompt", "ids")
    assert ids == tokenizer.encode(pl.Series(["clock!(Ann)why"])).to_list()


def test_instructions_are_one_response_rows(toy):
    frame = preferences(("why", "b", "c")).select("row", "prompt", pl.col("chosen").alias("response"))
    segments = tokenize(frame, toy)
    assert segments["kind"].to_list() == ["prompt", "response"]
    assert segments["segment"].to_list() == [0, 1]


def reasons(frame, tokenizer, **limits):
    result = tokenize_rows(frame, tokenizer, **limits)
    used = result.segments["row"].unique().len()
    assert used + result.rejects.height == frame.height
    return [(r["row"], r["field"], r["reason"]) for r in result.rejects.to_dicts()], result


def test_bad_rows_leave_no_line_and_are_reported(toy):
    frame = preferences(("a", "b", "c"), ("a", " \n", "c"), ("long " * 9, "b", "c"), ("a", "b", "c"), ("", "b", "c"))
    frame = frame.with_columns(
        prompt=pl.when(pl.col("row") == 3).then(pl.lit([], dtype=MESSAGES)).otherwise("prompt"),
    )
    found, result = reasons(frame, toy, max_prompt_tokens=30)
    assert found == [(1, "chosen", "empty_response"), (2, "prompt", "prompt_too_long"), (3, "prompt", "empty_prompt")]
    assert result.rejects.columns == ["file", "row", "field", "value", "reason", "rule", "remedy"]
    assert "raise max_prompt_tokens" in result.rejects["remedy"][1]
    assert result.rejects["value"][1] == "63 tokens"
    assert result.segments["row"].to_list() == [0, 0, 0, 4, 4, 4]


def test_bad_rows_raise_or_are_skipped(toy):
    frame = preferences(("a", "b", "c"), ("a", " ", "c"))
    for whole in (frame, frame.lazy()):
        with pytest.raises((DataError, pl.exceptions.ComputeError), match=r"empty_response: 1[\s\S]*row 1"):
            tokenize(whole, toy).lazy().collect()
        assert tokenize(whole, toy, on_error="skip").lazy().collect()["row"].to_list() == [0, 0, 0]
    assert tokenize_rows(frame, toy).rejects.schema == REJECTS


def test_tools_and_variables_of_another_kind_are_reported_by_their_names(tmp_path, toy):
    row = {"prompt": "p", "chosen": "c", "rejected": "r"}
    for name, value, kind in (
        ("tools", {"a": 1}, "list"), ("template_kwargs", [1], "object"), ("chat_template_kwargs", "x", "object"),
    ):  # fmt: skip
        for written in (value, json.dumps(value)):
            path = tmp_path / "a.jsonl"
            path.write_text(json.dumps(row) + "\n" + json.dumps(row | {name: written}) + "\n")
            with pytest.raises(DataError, match=rf"row 1, {name}: .* - {name} must be (a JSON {kind}|JSON)"):
                tokenize(path, toy)
    frame = preferences(("a", "b", "c"), tools=pl.Series(['{"a": 1}']))
    assert reasons(frame, toy)[0] == [(0, "tools", "broken_json")]


def test_broken_json_is_reported(toy):
    extra = preferences(("a", "b", "c")).with_columns(chosen=pl.Series([chat(("assistant", "b", "{"))], dtype=MESSAGES))
    assert reasons(extra, toy)[0] == [(0, "chosen", "broken_json")]
    kwargs = preferences(("a", "b", "c"), template_kwargs=pl.Series(["[1]"]))
    assert reasons(kwargs, toy)[0] == [(0, "template_kwargs", "broken_json")]


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ '?' if add_generation_prompt }}{% for m in messages %}{{ m.content }}{% endfor %}", "must begin with"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "as it stands"),
    ],
)
def test_templates_that_do_not_fit_are_reported(byte_file, tmp_path, source, rule):
    (tmp_path / "t.jinja").write_text(source)
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "t.jinja")
    found, result = reasons(preferences(("a", "b", "c")), tokenizer)
    assert [reason for *_, reason in found] == ["template"]
    assert rule in result.rejects["rule"][0]


def test_a_token_across_the_boundary(byte_file, tmp_path):
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "t.jinja")
    result = tokenize_rows(preferences(("a\n", "\n b", "\n c"), ("a\n", "\n b", "c"), ("a", "b c", "c")), tokenizer)
    assert result.tokenized_apart == 3
    newline, a, b = (tokenizer.encode(pl.Series([t])).to_list()[0] for t in ("\n", "a", " b"))
    assert column(result, "prompt", "ids") == [a + newline, a + newline, a]
    assert column(result, "chosen", "ids")[0] == newline + b
    assert column(result, "chosen", "starts")[0] == [0, 1, 2]


def test_a_token_across_the_boundary_of_other_tokenizers_is_reported(tmp_path):
    tokenizer = load_tokenizer(word_tokenizer(tmp_path), eos_token="</s>", chat_template="plain")
    found, result = reasons(preferences(("why", "no", "why"), ("why", "yes", "no")), tokenizer)
    assert found == [(1, "chosen", "boundary")]
    assert "token" in result.rejects["rule"][0]


def test_responses_are_cut_to_the_limit(toy):
    frame = preferences(("why", "cdefgh", "c"))
    whole = tokenize_rows(frame, toy)
    length = len(column(whole, "prompt", "ids")[0])
    cut = tokenize_rows(frame, toy, max_tokens=length + 3)
    assert (whole.responses_cut, cut.responses_cut) == (0, 1)
    assert column(cut, "chosen", "ids")[0] == column(whole, "chosen", "ids")[0][:3]
    assert column(cut, "chosen", "turns")[0] == [1, 1, 1]
    assert column(cut, "rejected", "ids") == column(whole, "rejected", "ids")
    for room in (0, 1):  # the response's space takes the first token
        found, result = reasons(frame, toy, max_tokens=length + room)
        assert [reason for *_, reason in found] == ["prompt_too_long"]
        assert "raise max_tokens" in result.rejects["remedy"][0]


def test_a_response_that_the_tokenizer_drops_is_reported(byte_file, tmp_path):
    library = tokenizers.Tokenizer.from_file(str(byte_file))
    library.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    library.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json", eos_token="</s>", chat_template="plain")
    found, _ = reasons(preferences(("why", "\u200b", "c")), tokenizer)
    assert found == [(0, "chosen", "empty_response")]


@needs_shared
def test_lazy_streaming_and_chunks_give_the_same():
    tokenizer = real("phi-2")
    frame = alpaca(60)
    expected = tokenize(frame, tokenizer)
    pieces = pl.concat([frame[:7], frame[7:8], frame[8:]], rechunk=False)
    assert tokenize(pieces, tokenizer).equals(expected)
    lazy = tokenize(frame.lazy(), tokenizer)
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect_schema() == SEGMENTS
    assert lazy.collect().equals(expected)
    assert lazy.collect(engine="streaming").equals(expected)
    assert tokenize(frame.slice(5, 3), tokenizer).equals(expected.filter(pl.col("row").is_between(5, 7)))
    assert tokenize(frame.clear(), tokenizer).equals(expected.clear())


@needs_shared
def test_any_number_of_threads_gives_the_same(tmp_path):
    program = (
        "import sys; from tests.data.frames import *; from pyprefopt.data import tokenize, load_tokenizer\n"
        f"t = load_tokenizer(SHARED / 'tokenizers/phi-2.json', eos_token='{EOS}', chat_template='plain')\n"
        "print(tokenize(alpaca(40), t).hash_rows().hash().sum())"
    )
    root = Path(__file__).parents[3]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"RAYON_NUM_THREADS": threads, "PYPREFOPT_SHARED": str(SHARED.parent.resolve())},
            cwd=root,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(outputs) == 1
    assert outputs.pop().strip().isdigit()


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=12), response=st.text(min_size=1, max_size=12).filter(str.strip), complete=st.booleans())
def test_any_text_is_covered_exactly(toy, prompt, response, complete):
    frame = preferences((prompt, response, "x"), chosen_complete=pl.Series([complete]))
    result = tokenize_rows(frame, toy)
    assert result.rejects.is_empty()
    line = result.segments.filter(kind="chosen").to_dicts()[0]
    spans = [(s, e) for s, e in zip(line["starts"], line["ends"], strict=True) if s is not None]
    covered = sorted({byte for s, e in spans for byte in range(s, e)})
    assert covered == list(range(len(response.encode())))
    assert spans == sorted(spans)
    text = toy.render([*chat(("user", prompt)), *chat(("assistant", response))])
    ids = result.segments.filter(pl.col("segment") < 2)["ids"].explode().to_list()
    assert ids == toy.encode(pl.Series([text if complete else text.removesuffix("</s>")])).to_list()[0]


def test_missing_parts_of_a_tokenizer_are_named(byte_file, tmp_path):
    with pytest.raises(ConfigError, match="pass eos_token='</s>'"):
        load_tokenizer(byte_file, chat_template="plain")
    with pytest.raises(ConfigError, match="pass chat_template: plain or chatml"):
        load_tokenizer(byte_file, eos_token="</s>")
    with pytest.raises(ConfigError, match="'<end>' is not in the vocabulary"):
        load_tokenizer(byte_file, eos_token="<end>", chat_template="plain")
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path, eos_token="</s>")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"broken\.json: not a tokenizer\.json"):
        load_tokenizer(tmp_path / "broken.json", eos_token="</s>", chat_template="plain")
    (tmp_path / "broken.jinja").write_text("{% if %}")
    with pytest.raises(ConfigError, match="does not compile"):
        load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "broken.jinja")


def test_a_name_without_network_is_reported(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"nobody/nothing.*local directory"):
        load_tokenizer("nobody/nothing")
    with pytest.raises(ConfigError, match="neither a file, nor a directory"):
        load_tokenizer("no such/path/at all")


def test_templates_named_in_the_config(byte_file, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(byte_file.read_bytes())
    config = {
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": "[PAD]",
        "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.chat_template, dict(tokenizer.special_tokens)) == ("d", {"eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("j")
    assert load_tokenizer(tmp_path).chat_template == "j"


def test_wrong_frames_are_reported(toy):
    frame = preferences(("a", "b", "c"))
    with pytest.raises(DataError, match="no column 'row'"):
        tokenize(frame.drop("row"), toy)
    with pytest.raises(DataError, match="no column 'rejected'"):
        tokenize(frame.drop("rejected"), toy)
    with pytest.raises(ConfigError, match="max_tokens must be a whole number, got '5'"):
        tokenize(preferences(("a", "b", "c")), None, max_tokens="5")
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        tokenize(frame, toy, max_tokens=0)
    with pytest.raises(ConfigError, match="on_error"):
        tokenize(frame, toy, on_error="ignore")
    with pytest.raises(DataError, match="column prompt must be of type list"):
        tokenize_rows(frame.with_columns(prompt=pl.lit("a")), toy)


def test_rows_never_pass_through_python_lists():
    banned = re.compile(r"\.(to_list|to_pylist|iter_rows|rows|to_dicts|tolist)\(")
    folder = Path(pyprefopt.__file__).parent / "data"
    one_at_a_time = {"pairs.py", "aspects.py", "added_columns.py"}  # write rows as JSON, as they are or nearly so
    found = [
        f"{path.name}: {line}"
        for path in folder.rglob("*.py")
        if path.name not in one_at_a_time
        for line in path.read_text().splitlines()
        if banned.search(line) and ">>>" not in line  # an example may show its result
    ]
    assert not found


def test_the_room_loads_nothing_until_it_is_used():
    program = (
        "import sys, pyprefopt.data as d; heavy = {'torch', 'polars', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from pyprefopt.data import tokenize, truncate\n"
        "import pyprefopt.data.tokenization.segments, pyprefopt.data.truncation.dispatch\n"
        "assert d.tokenize is tokenize and callable(tokenize) and d.truncate is truncate and callable(truncate)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def slowly(frame):
    """The same frame with an empty object as extra: rows then go the general way, message by message."""
    columns = [name for name in ("prompt", "chosen", "rejected") if name in frame.columns]
    given = pl.element().struct.with_fields(extra=pl.lit("{}"))
    return frame.with_columns(pl.col(name).list.eval(given) for name in columns)


def same_both_ways(frame, tokenizer, **options):
    fast, slow = (tokenize_rows(each, tokenizer, **options) for each in (frame, slowly(frame)))
    assert fast.segments.equals(slow.segments)
    assert fast.rejects.drop("value").equals(slow.rejects.drop("value"))
    assert fast[2:4] == slow[2:4]
    assert fast.rows_apart.equals(slow.rows_apart)
    return fast


CONTENTS = [
    "a", " a ", "\n", "", "user", "\x1c a\x1f", "</think>b", "<|im_end|>", "</s>", "{{ x }}", "\uf8fe\U000f0000",
    "\u3000é\n\n",
]  # fmt: skip


def chats_of(contents):
    """Every content as prompt and as response, in short and long chats."""
    rows = [(a, b) for a in contents for b in contents]
    system = [[], [("system", "Be brief.")], [("user", " u "), ("assistant", "v\n")]]
    prompts = [chat(*system[i % 3], ("user", a)) for i, (a, _) in enumerate(rows)]
    frame = preferences(*((a, b, "c") for a, b in rows))
    return frame.with_columns(
        prompt=pl.Series(prompts, dtype=MESSAGES), chosen_complete=pl.Series([i % 5 != 0 for i in range(len(rows))])
    )


TEMPLATES = (
    {path.stem: path.read_text() for path in trl_templates()} | FAMOUS | {n: read_chat_template(n) for n in SHIPPED}
)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_shapes_give_what_messages_give(bos_file, tmp_path, name):
    (tmp_path / "t.jinja").write_text(TEMPLATES[name])
    tokenizer = load_tokenizer(bos_file, chat_template=tmp_path / "t.jinja")
    for _ in range(2):  # learned, then remembered
        same_both_ways(chats_of(CONTENTS), tokenizer)
    if name in ("plain", "chatml", "llama3", "qwen2_5", "zephyr", "tulu", "qwen3", "gemma", "phi3", "mistral"):
        assert tokenizer.native.template_shapes > 0


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_random_chats_give_the_same_both_ways(data, bos_file, tmp_path_factory):
    name = data.draw(st.sampled_from(sorted(TEMPLATES)))
    path = tmp_path_factory.mktemp("t") / "t.jinja"
    path.write_text(TEMPLATES[name])
    tokenizer = load_tokenizer(bos_file, chat_template=path)
    contents = st.text(max_size=6) | st.sampled_from(CONTENTS)
    roles = st.lists(st.sampled_from(["user", "assistant", "system"]), min_size=1, max_size=4)
    rows = []
    for order in data.draw(st.lists(roles, min_size=1, max_size=3)):
        prompt = chat(*((role, data.draw(contents)) for role in order))
        rows += [(prompt, *(chat(("assistant", data.draw(contents))) for _ in range(2))) for _ in range(3)]
    frame = preferences(*(("", "", "") for _ in rows)).with_columns(
        pl.Series(side, [row[i] for row in rows], dtype=MESSAGES)
        for i, side in enumerate(("prompt", "chosen", "rejected"))
    )
    limits = data.draw(
        st.sampled_from([{}, {"max_prompt_tokens": 12, "prompt_overflow": "keep_end", "max_tokens": 20}])
    )
    same_both_ways(frame, tokenizer, **limits)


@needs_shared
def test_real_pairs_go_by_shapes():
    frame = alpaca(40)
    for template in SHIPPED:
        tokenizer = real("gpt-neox-20b", template)
        same_both_ways(frame, tokenizer, max_tokens=200, max_prompt_tokens=30, prompt_overflow="keep_start")
        assert tokenizer.native.template_shapes == 1


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_prompt_budgets_keep_bos_and_the_generation_prompt(bos_file, template):
    tokenizer = load_tokenizer(bos_file, chat_template=template)
    frame = preferences(("abcdefghijklmnop", "b", "c"), ("x", "b", "c"))
    whole = column(tokenize_rows(frame, tokenizer), "prompt", "ids")
    bare = tokenizer.render(chat(("user", "abcdefghijklmnop")))
    rest = tokenizer.render(chat(("user", "abcdefghijklmnop")), add_generation_prompt=True)[len(bare) :]
    generation = tokenizer.encode(pl.Series([rest])).to_list()[0]
    assert whole[0][-len(generation) :] == generation
    most = len(generation) + 6
    for rule in ("keep_end", "keep_start"):
        result = same_both_ways(frame, tokenizer, max_prompt_tokens=most, prompt_overflow=rule)
        ids = column(result, "prompt", "ids")[0]
        expected = {
            "keep_end": [whole[0][0], *whole[0][-(most - 1) :]],
            "keep_start": [*whole[0][: most - len(generation)], *generation],
        }
        assert ids == expected[rule]
        assert ids[0] == tokenizer.bos_token_id
        assert column(result, "prompt", "cut")[0] == len(whole[0]) - most
        assert column(result, "prompt", "starts")[0].__len__() == most
    found, result = reasons(frame, tokenizer, max_prompt_tokens=len(generation) + 1, prompt_overflow="keep_end")
    assert (0, "prompt", "prompt_too_long") in found
    assert f"more than the {len(generation) + 1} that the template needs" in result.rejects["rule"][0]
    with pytest.raises(ConfigError, match="max_prompt_tokens must be set where prompt_overflow is 'keep_end'"):
        tokenize(frame, tokenizer, prompt_overflow="keep_end")
    with pytest.raises(ConfigError, match="prompt_overflow must be"):
        tokenize(frame, tokenizer, prompt_overflow="cut")


def test_dropped_prompts_are_counted_and_no_error(bos_file, tmp_path, caplog):
    tokenizer = load_tokenizer(bos_file, chat_template="plain")
    frame = preferences(("abcdefghijklmnop", "b", "c"), ("x", "b", "c"))
    lengths = [len(ids) for ids in column(tokenize_rows(frame, tokenizer), "prompt", "ids")]
    limit = {"max_prompt_tokens": lengths[1]}
    with pytest.raises(DataError, match="prompt_too_long: 1"):
        tokenize(frame, tokenizer, **limit)
    with pytest.raises(DataError, match="set prompt_overflow to keep_end, keep_start or drop"):
        tokenize(frame, tokenizer, **limit, prompt_overflow="error")
    assert not caplog.records
    kept = tokenize(frame, tokenizer, **limit, prompt_overflow="drop")
    assert kept["row"].unique().to_list() == [1]
    assert kept.equals(tokenize(frame[1:], tokenizer))
    assert same_both_ways(frame, tokenizer, **limit, prompt_overflow="drop").rejects["reason"].to_list() == [
        "prompt_dropped"
    ]
    told = "1 of 2 rows are left out, whose prompts are longer than max_prompt_tokens (prompt_overflow drop)"
    assert told in caplog.messages
    tokenize(frame, tokenizer, **limit, prompt_overflow="drop", on_error="skip", rejected_path=tmp_path / "r.jsonl")
    assert pl.read_ndjson(tmp_path / "r.jsonl")["reason"].to_list() == ["prompt_dropped"]
    same = preferences(("abcdefghijklmnop", "b", "c"), ("x", "b", "b"))
    with pytest.raises(DataError, match=r"^1 of 2 rows cannot be used\n  identical_pair: 1"):  # the other is no fault
        tokenize(same, tokenizer, **limit, prompt_overflow="drop")
    with pytest.raises(ConfigError, match="max_prompt_tokens must be set where prompt_overflow is 'drop'"):
        tokenize(frame, tokenizer, prompt_overflow="drop")


def test_what_a_budget_cuts_off_a_response_is_counted(toy):
    frame = preferences(("why", "cdefgh", "c"))
    whole = tokenize_rows(frame, toy)
    assert whole.segments["cut"].to_list() == [0, 0, 0]
    length = len(column(whole, "prompt", "ids")[0])
    cut = tokenize_rows(frame, toy, max_tokens=length + 3)
    assert cut.segments["cut"].to_list() == [0, 4, 0]
    assert toy.eos_token_id not in column(cut, "chosen", "ids")[0]
    only_eos = tokenize_rows(frame, toy, max_tokens=length + 7)
    assert (only_eos.segments["cut"].to_list(), only_eos.responses_cut) == ([0, 0, 0], 1)


def test_boundary_decides_what_happens_to_a_token_across_it(byte_file, tmp_path):
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "t.jinja")
    frame = preferences(("a", "b", "c"), ("c", "b", "c"))
    result = same_both_ways(frame, tokenizer)
    assert (result.tokenized_apart, result.rows_apart.to_list()) == (1, [0])
    found, refused = reasons(frame, tokenizer, boundary="error")
    assert found == [(0, "chosen", "boundary")]
    assert "set boundary to split" in refused.rejects["remedy"][0]
    assert refused.rows_apart.to_list() == []


def test_bos_stands_once(bos_file, tmp_path):
    frame = preferences(("<s>a", "b", "c"), ("a<s>", "b", "c"))
    (tmp_path / "t.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}|{% endfor %}")
    found, _ = reasons(frame, load_tokenizer(bos_file, chat_template=tmp_path / "t.jinja"))
    assert found == [(0, "prompt", "double_bos")]
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}|{% endfor %}")
    found, result = reasons(frame, load_tokenizer(bos_file, chat_template=tmp_path / "t.jinja"))
    assert (found, result.without_bos) == ([], 1)


def test_candidates_become_numbered_responses(toy):
    answers = [["b", "cd", "e"], ["f"], []]
    frame = preferences(*(("why", "b", "c") for _ in answers)).select(
        "row",
        "prompt",
        responses=pl.Series([[chat(("assistant", a)) for a in row] for row in answers], dtype=pl.List(MESSAGES)),
        scores=pl.Series([[1.0, 2.0, None], None, []], dtype=pl.List(pl.Float64)),
    )
    found, result = reasons(frame, toy)
    assert found == [(2, "responses", "empty_response")]
    assert result.segments["kind"].to_list() == ["prompt", "response", "response", "response", "prompt", "response"]
    assert result.segments["segment"].to_list() == [0, 1, 2, 3, 0, 1]
    assert result.segments["score"].to_list() == [None, 1.0, 2.0, None, None, None]
    pair = tokenize_rows(preferences(("why", "b", "cd")), toy)
    assert result.segments["ids"].to_list()[:3] == pair.segments["ids"].to_list()
    with pytest.raises(DataError, match="scores must have one value for each of responses, not so in row 0"):
        tokenize(frame.with_columns(scores=pl.lit([1.0], dtype=pl.List(pl.Float32))), toy)


def test_only_what_the_assistant_writes_is_masked(byte_file, tmp_path):
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.name }}!{% endfor %}</{{ m.role }}>\n"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (tmp_path / "t.jinja").write_text(source)
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "t.jinja")
    turns = [
        ("assistant", "", '{"tool_calls": [{"name": "look"}]}'),
        ("tool", "sun"),
        ("assistant", "It"),
        ("user", "w"),
        ("assistant", "ok"),
    ]
    frame = preferences(("u", "b", "c")).with_columns(chosen=pl.Series([chat(*turns)], dtype=MESSAGES))
    line = tokenize_rows(frame, tokenizer).segments.filter(kind="chosen").to_dicts()[0]
    inverse = characters(tokenizer)
    shown = "".join(inverse[i] if on else "." for i, on in zip(line["ids"], line["mask"], strict=True))
    assert shown == "look!</assistant>" + "." * 29 + "It</assistant>" + "." * 27 + "ok</assistant>"


CALLED = """{% for m in messages %}{% if m.role == 'assistant' %}<assistant>%s
{% endif %}{% if m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>
{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
CALLS = "{% for c in m.tool_calls %}{{ c.name }}!{% endfor %}"
MARKED = {  # what a template writes of an assistant's message -> what is marked of a call, its answer, and the answer
    "{{ '(think)' if loop.last }}{{ m.content }}" + CALLS + "</a>": ("look!</a>", "So.look!</a>", "It</a>"),
    "(think){{ m.content }}" + CALLS + "</a>": ("look!</a>", "So.look!</a>", "It</a>"),
    CALLS + "{{ m.content }}</a>": ("look!</a>", "look!So.</a>", "It</a>"),
}


@pytest.mark.parametrize("template", MARKED)
@pytest.mark.parametrize("said", ["", "So."])
def test_tool_calls_are_marked_however_the_template_writes_what_is_last(byte_file, tmp_path, template, said):
    calls = '{"tool_calls": [{"name": "look"}]}'
    turns = [
        ("assistant", said, calls),
        ("tool", "sun"),
        ("assistant", said, calls),
        ("tool", "x"),
        ("assistant", "It"),
    ]
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=CALLED.replace("%s", template))
    frame = preferences(("u", "b", "c")).with_columns(chosen=pl.Series([chat(*turns)], dtype=MESSAGES))
    call, both, answer = MARKED[template]
    first = both if said else call
    assert written(tokenize_rows(frame, tokenizer), tokenizer) == [first, first, answer]
    if said:  # the last message may call tools, too
        frame = frame.with_columns(chosen=pl.Series([chat(*turns[:3])], dtype=MESSAGES))
        assert written(tokenize_rows(frame, tokenizer), tokenizer) == [first, first]


def test_tool_calls_whose_end_cannot_be_known_are_a_bad_row(byte_file, tmp_path):
    template = "{{ '(think)' if loop.last }}{{ m.content }}" + CALLS
    tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=CALLED.replace("%s", template).rstrip())
    turns = [("assistant", "", '{"tool_calls": [{"name": "look"}]}'), ("tool", "sun"), ("assistant", "It")]
    frame = preferences(("u", "b", "c")).with_columns(chosen=pl.Series([chat(*turns)], dtype=MESSAGES))
    result = tokenize_rows(frame, tokenizer)
    assert result.rejects["reason"].to_list() == ["template"]
    assert result.rejects["rule"][0].startswith("where the assistant's tool calls end must be seen")


def characters(tokenizer):
    """The character of each token id that is one."""
    plain = [*map(chr, range(32, 127)), "\n"]
    return {ids[0]: c for c, ids in zip(plain, tokenizer.encode(pl.Series(plain)).to_list(), strict=True)}


def written(result, tokenizer):
    """The runs of marked tokens of the chosen response, as text."""
    line = result.segments.filter(kind="chosen").to_dicts()[0]
    inverse = characters(tokenizer)
    shown = "".join(inverse[i] if on else "\0" for i, on in zip(line["ids"], line["mask"], strict=True))
    return [run for run in shown.split("\0") if run]


def test_rows_of_a_template_that_the_engine_does_not_have_are_rendered_by_the_reference(byte_file, tmp_path, caplog):
    plain = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ '[' if add_generation_prompt }}"
    frame = preferences(("why", "b é", "c"), ("a", " x ", "d"))
    results = []
    for source in (plain, "{{ messages['b', 'c'] }}" + plain, "{{ '' | wordcount if true else '' }}" + plain):
        (tmp_path / "t.jinja").write_text(source)
        tokenizer = load_tokenizer(byte_file, eos_token="</s>", chat_template=tmp_path / "t.jinja")
        with caplog.at_level("WARNING", logger="pyprefopt"):
            results.append(tokenize_rows(frame, tokenizer))
    assert results[0].segments.equals(results[1].segments)
    assert column(results[2], "chosen", "ids") == column(results[0], "chosen", "ids")
    assert caplog.text.count("rendered by transformers") == 2
