"""Mutated tokenizer files end in a sentence that names the file, or in a tokenizer: no traceback, no panic, no hang."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pyprefopt.data.tokenization.segments import tokenize
from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from pyprefopt.errors import ConfigError, PyprefoptError
from tests.data.tokenization.mutated import DEEP, bases, mutations

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
END = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>", "pad_token": END,
    "added_tokens_decoder": {"1": END | {"content": "<e>", "special": True}},
    "extra_special_tokens": {"e_token": "<e>"},
}  # fmt: skip
ROWS = pl.DataFrame({"prompt": ["a b", "ab é 中"], "chosen": ["ab  a\n", "a" * 50], "rejected": ["b a </s>", " x<e>"]})


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    own = {"tokenizer": bases()[0], "tokenizer_config": CONFIG, **files}
    for name, content in own.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{name}.json").write_bytes(raw)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def use(folder: Path) -> str:
    """What a user is told, or nothing."""
    try:
        tokenize(ROWS, load_tokenizer(folder), on_error="skip")
    except PyprefoptError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("base", range(4))
def test_mutated_files_end_in_a_sentence_or_a_tokenizer(base: int, tmp_path: Path) -> None:
    said = set()
    for content in itertools.islice(mutations(bases()[base], base), 80):
        folder = write(tmp_path / "t", tokenizer=content)
        words = use(folder)
        said.add(bool(words))
        assert not words or len(words) < 1000, words
    for name, value in (("tokenizer_config", CONFIG), ("special_tokens_map", {"eos_token": END})):
        for content in itertools.islice(mutations(value, base), 20):
            said.add(bool(use(write(tmp_path / name, **{name: content}))))
    assert said == {True, False}


def changed(path: str, value: Any, base: int = 0) -> dict[str, Any]:
    file = bases()[base]
    *names, last = path.split(".")
    place = file
    for name in names:
        place = place[name]
    place[last] = value
    return file


def pattern(regex: str) -> dict[str, Any]:
    return changed(
        "pre_tokenizer", {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    )


TOKEN = {"id": 0, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
GROWS = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40
BAD = [
    (changed("model.vocab", {"a": 2**32}), "4294967296"),
    (changed("model.merges", [["a", "never"]]), "never"),
    (changed("added_tokens", [TOKEN | {"content": "<x>", "id": 2**32}]), "4294967296"),
    (changed("added_tokens", [TOKEN | {"content": 5}]), "integer `5`"),
    (changed("model.type", "evil"), "tokenizer.json: not a tokenizer.json"),
    (pattern("("), "end pattern with unmatched parenthesis"),
    (pattern("(a+)+$"), 'does not come to an end on "aaa…"'),
    (pattern("(\\w|\\d|_)*!"), "does not come to an end on"),
    (pattern("((a{1000}){1000}){1000}"), "has more than 1048576 parts"),
    (changed("normalizer", {"type": "Sequence", "normalizers": GROWS}), "more than 4096 times as long"),
    (changed("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 300}), "of at most 256"),
    (changed("model.max_input_chars_per_word", 10**9, base=1), "_chars_per_word is at most 256, got 1000000000"),
    (changed("model.vocab", [["<unk>", 0.0], ["a" * 300, -1.0]], base=2), "a token has at most 256 characters"),
    (b'{"model": ' + b"[" * DEEP, "not a tokenizer.json"),
    (b"\xff\xfe", "not a tokenizer.json"),
    ([], "not a tokenizer.json"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "says"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_with_a_file_is_said(file: Any, says: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder, start = write(tmp_path / "t", tokenizer=file), time.perf_counter()
    with pytest.raises(ConfigError) as error:
        load_tokenizer(folder)
    words = str(error.value)
    assert words.startswith(f"{folder}/tokenizer.json: ")
    assert says in words
    assert "\n" not in words
    assert len(words) < 600
    assert time.perf_counter() - start < 20  # a hang is hours
    assert capfd.readouterr().err == ""  # a panic prints


CONFIGS = [
    (b"[", "tokenizer_config.json: it must be JSON"),
    (b"\xff", "tokenizer_config.json: it must be UTF-8, not so at byte 0"),
    (b"[" * DEEP, "tokenizer_config.json: it is nested too deep"),
    ([1], "tokenizer_config.json: it must hold a JSON object, got [1]"),
    (CONFIG | {"eos_token": 5}, "eos_token must be a text, or an object with the text as content, got 5"),
    (CONFIG | {"eos_token": {"content": [1]}}, "eos_token must be a text"),
    (CONFIG | {"added_tokens_decoder": [1]}, "added_tokens_decoder must be an object of tokens by id, got [1]"),
    (CONFIG | {"added_tokens_decoder": {"x": END}}, "added_tokens_decoder must have ids from 0 to 4294967295, got 'x'"),
    (CONFIG | {"added_tokens_decoder": {str(2**32): END}}, "must have ids from 0 to 4294967295, got '4294967296'"),
    (CONFIG | {"added_tokens_decoder": {"1": {"lstrip": True}}}, "entry 1 must be an object with the token's content"),
    (CONFIG | {"added_tokens_decoder": {"1": END | {"lstrip": 3}}}, "flags that are true or false"),
]


@pytest.mark.parametrize(("config", "says"), CONFIGS, ids=range(len(CONFIGS)))
def test_what_is_wrong_with_a_config_is_said(config: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_tokenizer(write(tmp_path / "t", tokenizer_config=config))
    assert str(error.value).startswith(f"{tmp_path}/t/tokenizer_config.json: ")
    assert says in str(error.value)


def test_a_text_that_patterns_may_take_too_long_for_is_a_bad_row(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "t", tokenizer=pattern("\\s+$")))
    for character, most in ((" ", 1 << 13), ("a", 1 << 16)):
        texts = [f"x {character * length} y" for length in (most - 2, most + 1)]
        rows = pl.DataFrame({"prompt": ["a", "b"], "chosen": texts, "rejected": ["a", "b"]})
        found: list[dict[str, Any]] = []
        made = tokenize(rows, tokenizer, on_error="skip", rejected_path=tmp_path / "rejected.jsonl")
        found = pl.read_ndjson(tmp_path / "rejected.jsonl").to_dicts()
        assert made["row"].unique().to_list() == [0]
        assert [(bad["row"], bad["reason"]) for bad in found] == [(1, "tokenizer")]
        assert f"more than {most} " in found[0]["rule"]
