"""What the files beside a tokenizer.json say of tokens: ids are those of transformers and of `tokenizers`."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from tests.data.frames import SHARED, needs_shared

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
EVERY = [dict(zip(FLAGS, flags, strict=True)) for flags in itertools.product((False, True), repeat=len(FLAGS))]
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def base(normalizer: object = None) -> dict:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("a", "b"), ("\u010a", "\u010a"), ("<", "|")]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges), "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return json.loads(tokenizer.to_str())


def write(folder: Path, file: dict, config: dict, **others: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def texts(tokens: list[str], seed: int = 0, count: int = 60) -> list[str]:
    chance = random.Random(seed)
    parts = ["a", "b", " ", "  ", "\n", "\n\n", "ab", "é", "<|", ".", "E", *tokens, *tokens]
    return ["".join(chance.choices(parts, k=chance.randrange(1, 12))) for _ in range(count)]


def added(file: dict, tokens: dict[str, dict]) -> dict:
    first = len(file["model"]["vocab"])
    listed = [{"id": first + i, "content": text} | flags for i, (text, flags) in enumerate(tokens.items())]
    return file | {"added_tokens": listed}


def assert_as_users_read_it(folder: Path, texts: list[str], again: Path) -> None:
    """Ids of ours, of AutoTokenizer, and of both on what ours saves."""
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    wanted = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert ours.encode(texts).to_list() == wanted
    assert ours.prove(texts and list_of(texts), all=True)
    ours.save(again)
    assert load_tokenizer(again).encode(texts).to_list() == wanted
    saved = AutoTokenizer.from_pretrained(again)
    assert [saved.encode(text, add_special_tokens=False) for text in texts] == wanted
    plain = Tokenizer.from_file(str(again / "tokenizer.json"))
    for text, ids in zip(texts, wanted, strict=True):  # </s> is special by its name in the config
        assert "</s>" in text or plain.encode(text, add_special_tokens=False).ids == ids


def list_of(texts: list[str]):
    import polars as pl

    return pl.Series(texts)


@needs_shared
def test_a_token_keeps_its_flags_when_the_config_names_it(tmp_path: Path) -> None:
    file = json.loads((SHARED / "tokenizers" / "gpt-neox-20b.json").read_text())
    end = {"id": 50277, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": True}
    file["added_tokens"].append(end | {"normalized": False, "special": True})
    folder = write(tmp_path / "m", file, {"eos_token": "<|end|>"})
    assert load_tokenizer(folder).encode(["q<|end|>\n<|assistant|>"]).to_list() == [
        Tokenizer.from_file(str(folder / "tokenizer.json")).encode("q<|end|>\n<|assistant|>").ids
    ]
    assert_as_users_read_it(folder, ["q<|end|>\n<|assistant|>", "q<|end|> \n a", "<|end|>"], tmp_path / "again")


@pytest.mark.parametrize("flags", EVERY, ids=lambda flags: "-".join(name for name, on in flags.items() if on) or "none")
@pytest.mark.parametrize("named", ["text", "decoder", "map", "object"])
def test_flags_of_every_kind_are_read_as_transformers_does(flags: dict, named: str, tmp_path: Path) -> None:
    tokens = {"<|e|>": flags, "<|u|>": {**flags, "special": not flags["special"]}, "\u0401": flags}
    file = added(base(normalizers.NFC()), tokens)
    other = {"content": "<|e|>"} | {name: not on for name, on in flags.items()}
    config: dict = {"eos_token": "<|e|>", "pad_token": "</s>", "extra_special_tokens": {"user_token": "<|u|>"}}
    others: dict = {}
    if named == "decoder":
        decoder = {"261": other, "262": {"content": "<|u|>"} | flags}
        config["added_tokens_decoder"] = decoder | {"264": {"content": "<|more|>"} | flags}
    if named == "map":
        others["special_tokens_map"] = {"eos_token": {k: v for k, v in other.items() if k != "special"}}
    if named == "object":
        others["special_tokens_map"] = {"pad_token": other | {"content": "</s>"}}
    folder = write(tmp_path / "m", file, config, **others)
    samples = texts(["<|e|>", "<|u|>", "\u0401", "\u0415\u0308", "</s>", "<|more|>"])
    assert_as_users_read_it(folder, samples, tmp_path / "again")
