"""What a foreign tokenizer does not have: a warning with its share from 1 % on, an error from 50 % on."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

import pyprefopt
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.tokenization.coverage import Coverage
from pyprefopt.data.tokenization.segments import tokenize, tokenize_rows
from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from pyprefopt.errors import DataError
from pyprefopt.settings.resolve import configure
from tests.data.frames import preferences
from tests.pipeline.runs import MODEL

TEMPLATE = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def bpe(**settings: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "▁": 2, "[UNK]": 3}, [], **settings))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def silent() -> Tokenizer:
    return bpe()


def named() -> Tokenizer:
    return bpe(unk_token="[UNK]")


def fallback() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(["a", "b", "▁", "<unk>", *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = normalizers.Replace(" ", "▁"), decoders.ByteFallback()
    return tokenizer


def byte_level(letters: int = 256) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: c not in "abĠ")[:letters]
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def few_bytes() -> Tokenizer:
    return byte_level(3)


def load(make, folder: Path):
    tokenizer = make()
    tokenizer.add_special_tokens(["</s>"])
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str())))
    return load_tokenizer(folder, eos_token="</s>", chat_template=TEMPLATE)


def pairs(foreign: int, rows: int = 100) -> pl.DataFrame:
    """Of every 100 words of the responses, so many that no small vocabulary has."""
    text = ["中" if at < foreign else "a" for at in range(100)]
    texts = [" ".join(text), " ".join(text[::-1]) + " b"]
    return preferences(*(("a", *texts) for _ in range(rows)))


UNKNOWN, DROPPED = "of the tokens are its unknown token", "of the text has no token and is left out"
FOREIGN = [(words, UNKNOWN), (pieces, UNKNOWN), (unigram, UNKNOWN), (silent, DROPPED), (few_bytes, DROPPED)]


@pytest.mark.parametrize(("make", "says"), FOREIGN)
def test_a_foreign_tokenizer_is_told_with_its_share(make, says: str, tmp_path: Path, caplog) -> None:
    tokenizer = load(make, tmp_path / "t")
    caplog.clear()
    tokenize(pairs(0), tokenizer)
    assert says not in caplog.text
    tokenize(pairs(10), tokenizer)
    assert says in caplog.text
    assert "%" in caplog.text
    caplog.clear()
    with pytest.raises(DataError, match=f"[6-9][0-9].[0-9]% {says}"):
        tokenize(pairs(99), tokenizer)
    assert says not in caplog.text


@pytest.mark.parametrize(("make", "says"), FOREIGN)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_the_share_is_told_where_it_is_why_rows_are_refused(make, says: str, on_error: str, tmp_path: Path) -> None:
    """Texts of which nothing is known become the same tokens, or none."""
    tokenizer = load(make, tmp_path / "t")
    rows = pl.DataFrame({"prompt": ["a"] * 4, "chosen": ["中 文"] * 4, "rejected": ["日 本"] * 4})
    rows.write_parquet(tmp_path / "rows.parquet")
    frame = preferences(*(("a", "中 文", "日 本") for _ in range(4)))
    for give in (
        lambda: tokenize(frame, tokenizer, on_error=on_error),
        lambda: tokenize(frame.lazy(), tokenizer, on_error=on_error).collect(),
        lambda: tokenize(tmp_path / "rows.parquet", tokenizer, on_error=on_error),
        lambda: prepare(tmp_path / "rows.parquet", tokenizer, tmp_path / "out", on_error=on_error),
    ):
        with pytest.raises((DataError, pl.exceptions.ComputeError), match=says):
            give()


@pytest.mark.parametrize("make", [silent, few_bytes])
def test_a_response_keeps_its_tokens_behind_what_is_dropped(make, tmp_path: Path) -> None:
    load(make, tmp_path / "t")
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = load_tokenizer(tmp_path / "t", eos_token="</s>", chat_template=bare)
    texts = ("b中", "aaaa", "aaab")  # what is dropped leaves its three bytes to the first three letters
    for boundary in ("split", "error"):
        result = tokenize_rows(preferences(texts), tokenizer, boundary=boundary)
        if make is few_bytes and boundary == "split":
            assert result.segments["ids"].to_list() == [tokenizer.encode([text]).to_list()[0] for text in texts]
        else:
            assert result.rejects["rule"].to_list()[0].startswith("prompt and responses must meet at a token's edge")


@pytest.mark.parametrize("make", [fallback, byte_level])
def test_bytes_are_no_unknown_tokens(make, tmp_path: Path, caplog) -> None:
    tokenizer = load(make, tmp_path / "t")
    result = tokenize_rows(pairs(99), tokenizer)
    assert (result.coverage.unknown_tokens, result.coverage.dropped_bytes) == (0, 0)
    assert result.coverage.response_tokens > 0
    assert "%" not in caplog.text


def test_shares_decide(caplog) -> None:
    Coverage(1000, 9, 1000, 9).check("rows", "t")
    assert not caplog.records
    Coverage(1000, 10, 1000, 499).check("rows", "t")
    said = [record.getMessage() for record in caplog.records]
    assert [("1.0%" in said[0], UNKNOWN in said[0]), ("49.9%" in said[1], DROPPED in said[1])] == [(True, True)] * 2
    for counts in ((1000, 500, 0, 0), (1000, 0, 10, 5)):
        with pytest.raises(DataError, match=r"50\.0% of the .*; take the tokenizer of a model that knows"):
            Coverage(*counts).check("rows", "t")


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=5))
def test_counts_add_up(counts: list[tuple[int, int, int, int]]) -> None:
    whole = Coverage.total(Coverage(*one) for one in counts)
    assert whole == Coverage(*(sum(one[at] for one in counts) for at in range(4)))


def test_preparing_and_training_say_it(tmp_path: Path, caplog) -> None:
    tokenizer = load(words, tmp_path / "t")
    rows = {name: [f"{name} 中 {i}" for i in range(8)] for name in ("prompt", "chosen")}
    rows["rejected"] = [f"{text} 中" for text in rows["chosen"]]
    pl.DataFrame(rows).write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: of the responses, tokenized by .*%"):
        prepare(tmp_path / "bad.parquet", tokenizer, tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    own = {"method": "dpo", "model": str(tmp_path / "config.json"), "tokenizer": str(tmp_path / "t"), "max_steps": 1}
    own |= {"eos_token": "</s>", "chat_template": TEMPLATE, "eval_ratio": 0.0, "global_batch_size": 2}
    with pytest.raises(DataError, match=r"bad\.parquet: of the responses"):
        pyprefopt.train(configure(**own, data=str(tmp_path / "bad.parquet"), output_dir=str(tmp_path / "run")))
    some = {"prompt": ["a"] * 4, "chosen": ["a b a b a b 中 a"] * 4, "rejected": ["b a b a"] * 4}
    pl.DataFrame(some).write_parquet(tmp_path / "some.parquet")
    store = prepare(tmp_path / "some.parquet", tokenizer, tmp_path / "folder")
    assert Coverage.of(store.manifest) == Coverage(56, 4, 56, 0)
    assert "some.parquet: of the responses" in caplog.text
    assert "7.1% of the tokens" in caplog.text
