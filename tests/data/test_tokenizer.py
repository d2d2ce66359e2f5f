"""Ids and offsets against the `tokenizers` library, for every family and for odd texts."""

from __future__ import annotations

import gzip
import json
import logging
from functools import cache

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from pyprefopt.data import _native
from pyprefopt.data.tokenizer import load_tokenizer
from tests.data.frames import REAL_TOKENIZERS, SHARED, needs_shared

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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


FAST = {
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
    for line in gzip.open(SHARED / "hh-rlhf-harmless.jsonl.gz", "rt", encoding="utf-8"):
        texts += json.loads(line).values()
    for language in ("en", "zh"):
        with gzip.open(SHARED / f"sharegpt-dpo-{language}.json.gz", "rt", encoding="utf-8") as file:
            for row in json.load(file):
                texts += [turn["value"] for turn in [*row["conversations"], row["chosen"], row["rejected"]]]
    frame = pl.read_parquet(SHARED / "alpaca-candidates.parquet", columns=["prompt", "response"])
    return [*texts, *frame["prompt"].unique().sort(), *frame["response"][::8]]


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*ODD, "\n\nHuman: ", "\n\nAssistant: ", "  ", " \n", "12", "'ll", "的", "é", "<mask>", " <r> ", "."]),
    st.text(st.sampled_from("aAzZ 'sStT\n\r\t.,!0129éßſ中²\u0301\u00a0\u3000"), max_size=20),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize("name", FAST)
def test_families_are_fast_and_equal_on_odd_texts(name):
    native, reference = made(name)
    assert (native.engine, native.why) == ("fast", "")
    assert_equal(native, reference, ODD + CORPUS + ["".join(ODD), " ".join(ODD)])


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_families_equal_on_random_texts(name, texts):
    assert_equal(*made(name), texts)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "falcon"])
def test_long_words_are_equal_and_not_quadratic(name):
    native, reference = made(name)
    assert_equal(native, reference, LONG)


@needs_shared
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_real_tokenizers_are_fast_and_equal_on_real_texts(name):
    native, reference = real(name)
    assert (native.engine, native.why) == ("fast", "")
    assert_equal(native, reference, ODD + shared_texts())


@needs_shared
@pytest.mark.parametrize("name", REAL_TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_real_tokenizers_equal_on_random_texts(name, texts):
    assert_equal(*real(name), texts)
