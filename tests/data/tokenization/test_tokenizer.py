# ruff: noqa: RUF001 (look-alike letters are what is tested)
"""Ids and offsets against the `tokenizers` library, for every family and for odd texts."""

from __future__ import annotations

import gzip
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from pyprefopt import data
from pyprefopt.data import _native
from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from pyprefopt.errors import ConfigError
from tests.data.frames import REAL_TOKENIZERS, SHARED, needs_shared

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
HIGH, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{HIGH}*{LOW}+{CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{HIGH}+{LOW}*{CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The quick brown fox doesn't jump over the lazy dog; they've said we'll see IT'S 12345 times.\n\n",
    "Привет мир, это проверка.  今天天气很好，我们去公园玩吧。日本語のテキスト 한국어 naïve café ÉCOLE\n",
    "def main(argc, argv):\n    return {'key': [1, 22, 333, 4444]}  # comment …\n\n\n\n",
    "😀😃 👩‍👩‍👧‍👦 مرحبا بالعالم हिन्दी \t\t tabs and   spaces          many McDonald's HTTPServer\r\n",
] * 4
ODD = [
    "",
    " ",
    "   ",
    "\n",
    " \n \n\n",
    "\u3000",
    "\x00",
    "a\x00b\x00\x00",
    "\x03\x7f\x85\xa0",
    "'",
    "'s",
    "'S'ſ''t 'LL a'lL'Re",
    "e\u0301 n\u0303 \u0301\u0301 a\u0327\u0301",
    "\u1100\u1161\u11a8 각 각",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "שלום עולם مرحبا",
    "\u200f\u202e rtl \u200d\ufeff",
    "x²³¹¼½¾ 1²3 ²1234 12345678 ٣٤٥٦ Ⅷ⑩",
    "ǅ ʰʲ ÀÉ camelCase ABCdef aBC ABC's AbC'Sx",
    "\u0903\u093f \u20dd\u20ddA\u0301B b\u0301C",
    "a/b//\r\n/c !!\n\n ?\r\n x\r\n\r\n\ty",
    "▁ ▁▁ a▁b ▁ x",
    "<|endoftext|><|endoftext|> <|endoftext|>\n<|end",
    "\U0010ffff\ue000\U000e0041",
    " " * 100,
    "\t" * 50 + "x" + "\n" * 50,
]
LONG = ["a" * 1_000_000, "ab" * 300_000 + "é" * 1000, "漢字" * 100_000, "1" * 200_000, " " * 300_000, "!?" * 100_000]


def library(json_text):
    """The reference as we use it: no special tokens, untrimmed byte offsets."""
    tokenizer = Tokenizer.from_str(json_text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def byte_bpe(pre_tokenizer, *, normalizer=None, ignore_merges=False, added=(), size=700):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt2(**options):
    return byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), **options)


def falcon():
    return byte_bpe(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    )


def spaces(normalizer, pre_tokenizer):
    """BPE with byte fallback, its merges learned on words that begin with ▁."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "▁▁▁▁", *learned["vocab"]]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), *map(tuple, learned["merges"])]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def llama2():
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return spaces(normalizers.Sequence(steps), None)


FAST = {
    "llama2": llama2,
    "gemma": lambda: spaces(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")),
    "mistral": lambda: spaces(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace_always": lambda: spaces(None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True)),
    "metaspace_never": lambda: spaces(None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
    "gpt2": gpt2,
    "gpt2_nfc_space_tokens": lambda: gpt2(
        normalizer=normalizers.NFC(), added=[AddedToken(" " * n, normalized=True) for n in range(2, 9)]
    ),
    "gpt2_strips": lambda: gpt2(added=[AddedToken("<mask>", lstrip=True), AddedToken("<r>", rstrip=True)]),
    "llama3": lambda: byte_bpe(split(LLAMA3), ignore_merges=True),
    "qwen2": lambda: byte_bpe(split(QWEN2), normalizer=normalizers.NFC()),
    "o200k": lambda: byte_bpe(split(O200K)),
    "falcon": falcon,
}


@cache
def made(name):
    """The handle and the reference of a trained family."""
    text = FAST[name]().to_str()
    return _native.Tokenizer(text.encode()), library(text)


@cache
def real(name):
    text = (SHARED / "tokenizers" / f"{name}.json").read_text(encoding="utf-8")
    return _native.Tokenizer(text.encode()), library(text)


def ids(native, texts):
    return pl.Series(native.encode(pl.Series("texts", texts, pl.String))).to_list()


def assert_equal(native, reference, texts):
    """Ids by `encode`; ids and offsets by `prove`, which compares them with the reference in Rust."""
    encodings = reference.encode_batch_fast(texts, add_special_tokens=False)
    for text, got, expected in zip(texts, ids(native, texts), encodings, strict=True):
        assert got == expected.ids, text[:200]
    assert native.prove(pl.Series("texts", texts, pl.String), all=True) is None


@cache
def shared_texts():
    """Every text of the real data."""
    texts = []
    with gzip.open(SHARED / "hh-rlhf-harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            texts += json.loads(line).values()
    for language in ("en", "zh"):
        with gzip.open(SHARED / f"sharegpt-dpo-{language}.json.gz", "rt", encoding="utf-8") as file:
            for row in json.load(file):
                texts += [turn["value"] for turn in [*row["conversations"], row["chosen"], row["rejected"]]]
    frame = pl.read_parquet(SHARED / "alpaca-candidates.parquet", columns=["prompt", "response"])
    return [*texts, *frame["prompt"].unique().sort(), *frame["response"].drop_nulls()]


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *ODD,
            "\n\nHuman: ",
            "\n\nAssistant: ",
            "  ",
            " \n",
            "12",
            "'ll",
            "的",
            "é",
            "<mask>",
            " <r> ",
            ".",
            "<s>",
            " </s>",
        ]
    ),
    st.text(st.sampled_from("aAzZ 'sStT\n\r\t.,!0129éßſ中²\u0301\u00a0\u3000"), max_size=20),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize("name", FAST)
def test_families_are_fast_and_equal_on_odd_texts(name):
    native, reference = made(name)
    assert (native.engine, native.why) == ("fast", "")
    assert_equal(native, reference, ODD + CORPUS + ["".join(ODD), " ".join(ODD)])


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_families_equal_on_random_texts(name, texts):
    assert_equal(*made(name), texts)


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_long_words_are_equal_and_not_quadratic(name):
    native, reference = made(name)
    assert_equal(native, reference, LONG)


@needs_shared
@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_real_tokenizers_are_fast_and_equal_on_real_texts(name, every):
    native, reference = real(name)
    assert (native.engine, native.why) == ("fast", "")
    assert_equal(native, reference, ODD + shared_texts()[::every])


@needs_shared
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_real_tokenizers_equal_on_random_texts(name, texts):
    assert_equal(*real(name), texts)


@pytest.fixture
def heard(caplog):
    caplog.set_level(logging.WARNING, "pyprefopt")
    return caplog


def saved(tokenizer, directory):
    path = directory / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return path


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, show_progress=False, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=["[UNK]", "</s>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.mark.parametrize(("make", "why"), [(unigram, 'model: type "Unigram"'), (wordpiece, 'model: type "WordPiece"')])
def test_other_families_are_left_to_the_library_with_a_warning(make, why, tmp_path, heard):
    made_here = make()
    tokenizer = load_tokenizer(saved(made_here, tmp_path), eos_token="</s>", chat_template="plain")
    assert tokenizer.engine == "tokenizers"
    assert why in tokenizer.why
    assert tokenizer.why in heard.text
    texts = [text for text in ODD + CORPUS if len(text) < 200]
    expected = [encoding.ids for encoding in made_here.encode_batch(texts, add_special_tokens=False)]
    assert tokenizer.encode(pl.Series(texts)).to_list() == expected


def test_a_fast_tokenizer_is_silent_and_proves_itself_on_the_first_texts(tmp_path, heard):
    made_here = gpt2()
    tokenizer = load_tokenizer(saved(made_here, tmp_path), eos_token="<|endoftext|>", chat_template="plain")
    texts = pl.Series("text", [*CORPUS, None, ""])
    encoded = tokenizer.encode(texts)
    assert (encoded.name, encoded.dtype) == ("text", pl.List(pl.UInt32))
    assert encoded.to_list()[:-2] == [made_here.encode(text).ids for text in CORPUS]
    assert encoded.to_list()[-2:] == [None, []]
    assert tokenizer.prove(texts, all=True)
    assert (tokenizer.engine, tokenizer.why, heard.text) == ("fast", "", "")


def test_a_tokenizer_that_cannot_be_saved_leaves_the_old_one(tmp_path, monkeypatch):
    tokenizer = load_tokenizer(saved(gpt2(), tmp_path), eos_token="<|endoftext|>", chat_template="plain")
    tokenizer.save(tmp_path / "kept")
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(tokenizer, json=b"{}").save(tmp_path / "kept")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before


class Watched:
    """A handle that records which texts it was asked to prove, and what `prove` gives."""

    def __init__(self, native, difference=None):
        self.native, self.difference, self.asked, self.calls = native, difference, [], []

    def prove(self, texts, *, all):  # noqa: A002
        self.asked.append(texts.to_list())
        self.calls.append("prove")
        return self.difference

    @property
    def proved(self):
        return bool(self.asked)

    def tokenize(self, *given, **limits):
        self.calls.append("tokenize")
        return self.native.tokenize(*given, **limits)

    def prepare(self, *given, **limits):
        self.calls.append("prepare")
        return self.native.prepare(*given, **limits)

    def __getattr__(self, name):
        return getattr(self.native, name)


PAIR = {"prompt": "the prompt", "chosen": "is chosen", "rejected": "is not"}
CANDIDATES = {"prompt": "the prompt", "responses": ["one", "another"], "scores": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("read", "row", "texts"),
    [
        (data.read_preferences, PAIR, ["the prompt", "is chosen", "is not"]),
        (data.read_instructions, {"prompt": "the prompt", "response": "an answer"}, ["the prompt", "an answer"]),
        (data.read_candidates, CANDIDATES, ["the prompt", "one", "another"]),
    ],
)
@pytest.mark.parametrize("difference", [None, "row 0 of the texts: text 0, byte 3: ids [1] instead of [2]"])
def test_tokenization_proves_the_engine_on_the_first_rows(tmp_path, heard, read, row, texts, difference):
    tokenizer = load_tokenizer(saved(gpt2(), tmp_path), eos_token="<|endoftext|>", chat_template="plain")
    watched = Watched(tokenizer.native, difference)
    data.tokenize(read(pl.DataFrame([row])), replace(tokenizer, native=watched))
    assert (watched.asked, watched.calls) == ([texts], ["prove", "tokenize"])
    assert ("row 0 of the texts" in heard.text) == (difference is not None)


def test_preparation_proves_the_engine_on_the_first_rows(tmp_path):
    tokenizer = load_tokenizer(saved(gpt2(), tmp_path), eos_token="<|endoftext|>", chat_template="plain")
    watched = Watched(tokenizer.native)
    data.prepare(pl.DataFrame([PAIR]), replace(tokenizer, native=watched), tmp_path / "out")
    assert (watched.asked, watched.calls) == ([list(PAIR.values())], ["prove", "prepare"])


def test_a_difference_is_warned_of_with_its_place(tmp_path, heard):
    class Differs:
        def prove(self, texts, *, all):  # noqa: A002
            return "row 3 of the texts: text 3, byte 7: ids [1] instead of [2]"

    tokenizer = load_tokenizer(saved(gpt2(), tmp_path), eos_token="<|endoftext|>", chat_template="plain")
    assert not replace(tokenizer, native=Differs()).prove(pl.Series(["x"]))
    assert "row 3" in heard.text
    assert "tokenizers library makes all further ids" in heard.text


def test_chunks_and_arrow_types_give_the_same_ids(tmp_path):
    reference = gpt2()
    tokenizer = load_tokenizer(saved(reference, tmp_path), eos_token="<|endoftext|>", chat_template="plain")
    texts = CORPUS * 3
    expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
    chunked = pl.concat([pl.Series(texts[:5]), pl.Series(texts[5:])], rechunk=False)
    for column in (
        chunked,
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.chunked_array([texts[:7], texts[7:]]),
    ):
        assert tokenizer.encode(column).to_list() == expected
    assert tokenizer.encode(pl.Series([], dtype=pl.String)).to_list() == []


@needs_shared
def test_ids_do_not_depend_on_threads_or_on_what_was_encoded_before():
    texts = shared_texts()[:300]
    native, _ = real("phi-2")
    first = ids(native, texts)
    assert ids(native, texts[::-1])[::-1] == first
    script = (
        "import sys, json, polars as pl; from pyprefopt.data import _native\n"
        "native = _native.Tokenizer(open(sys.argv[1], 'rb').read())\n"
        "texts = json.load(sys.stdin)\n"
        "print(json.dumps(pl.Series(native.encode(pl.Series(texts))).to_list()))"
    )
    path = str(SHARED / "tokenizers" / "phi-2.json")
    for threads in ("1", "3"):
        run = subprocess.run(
            [sys.executable, "-c", script, path],
            input=json.dumps(texts),
            env=os.environ | {"RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(run.stdout) == first


def test_a_path_of_another_type_is_reported():
    with pytest.raises(ConfigError, match=r"tokenizer must be a folder, a tokenizer.json, .*got one of type int$"):
        load_tokenizer(5)


def test_a_template_may_be_given_as_its_source(tmp_path):
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = load_tokenizer(saved(gpt2(), tmp_path), eos_token="<|endoftext|>", chat_template=source)
    assert tokenizer.chat_template == source
    with pytest.raises(ConfigError, match=r"^chat_template must be one of plain, chatml, a Jinja file or .* 'plane'"):
        load_tokenizer(saved(gpt2(), tmp_path), eos_token="<|endoftext|>", chat_template="plane")


def test_chatml_without_its_markers_is_reported(tmp_path, caplog):
    made = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "<|im_start|>": 2}, unk_token="a"))
    made.save(str(tmp_path / "tokenizer.json"))
    load_tokenizer(tmp_path / "tokenizer.json", eos_token="</s>", chat_template="plain")
    assert "has no token" not in caplog.text
    load_tokenizer(tmp_path / "tokenizer.json", eos_token="</s>", chat_template="chatml")
    assert "has no token <|im_end|>, which chatml ends and begins turns with" in caplog.text
