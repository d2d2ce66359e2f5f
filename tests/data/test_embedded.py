"""The embedded set is deterministic, planted where its spans are, and no pair can be ranked without reading."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest

from pyprefopt.data.embedded import (
    ANIMALS,
    CANDIDATES,
    CHOICES,
    RESPONSE_WORDS,
    SOUNDS,
    partner,
    write_candidates,
    write_toy,
)
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.reading.frames import read_candidates, read_instructions, read_preferences
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from pyprefopt.errors import ConfigError, DataError

SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


def words(frame, side):
    return [text.split() for text in frame[side]]


def counts(frame, side):
    """Word counts of every response, [rows, words]."""
    vocabulary = sorted({word for name in SIDES for text in words(frame, name) for word in text})
    column = {word: index for index, word in enumerate(vocabulary)}
    table = np.zeros((frame.height, len(vocabulary)))
    for row, text in enumerate(words(frame, side)):
        for word, count in Counter(text).items():
            table[row, column[word]] = count
    return table


def logistic(features, labels, steps=150, rate=0.05):
    """Weights of a logistic regression by gradient descent on standardised features."""
    weights, bias = np.zeros(features.shape[1]), 0.0
    for _ in range(steps):
        error = (1 + np.tanh((features @ weights + bias) / 2)) / 2 - labels
        weights -= rate * features.T @ error / len(labels)
        bias -= rate * error.mean()
    return weights, bias


def test_the_sets_have_names(toy, tmp_path):
    train, test = write_candidates(tmp_path)
    for name, path, read in (
        ("embedded:toy", toy.train, read_preferences), ("embedded:toy/test", toy.test, read_preferences),
        ("embedded:toy", toy.sft, read_instructions), ("embedded:toy", train, read_candidates),
        ("embedded:toy/test", test, read_candidates),
    ):  # fmt: skip
        assert read(name).equals(read(path))
    assert open_source(["embedded:toy"], format="candidates").kind == "candidates"
    ours, theirs = load_tokenizer("embedded:toy"), load_tokenizer(toy.tokenizer)
    assert ours.fingerprint == theirs.fingerprint
    assert str(ours.path) == "embedded:toy"
    store = prepare("embedded:toy", ours, tmp_path / "folder")
    assert store.table.equals(prepare(str(toy.train), theirs, tmp_path / "other").table)
    with pytest.raises(DataError, match=r"^embedded:toys must be a file; there is none; did you mean 'embedded:toy'\?"):
        read_preferences("embedded:toys")


def test_the_bytes_depend_on_the_arguments_alone(toy, tmp_path):
    again = write_toy(tmp_path / "again")
    files = [path for path in sorted(toy.train.parent.rglob("*")) if path.is_file()]
    assert len(files) == 6
    for path in files:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(toy.train.parent)).read_bytes()
    other = write_toy(tmp_path / "other", seed=1, train=16, test=16, sft=16)
    assert not pl.read_parquet(other.test).equals(pl.read_parquet(again.test).head(16))


def test_sizes_and_disjoint_splits(toy):
    train, test, sft = (pl.read_parquet(path) for path in (toy.train, toy.test, toy.sft))
    assert (train.height, test.height, sft.height) == (2000, 400, 2000)
    assert not set(train["prompt"]) & set(test["prompt"])


def test_every_row_is_good_data(toy):
    for path in (toy.train, toy.test):
        assert read_preferences(path).height == pl.read_parquet(path).height
    assert read_instructions(toy.sft).height == 2000


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_sides_have_the_same_lengths_and_word_counts(toy, split):
    frame = pl.read_parquet(getattr(toy, split))
    total = {side: Counter(word for text in words(frame, side) for word in text) for side in SIDES}
    assert total["chosen"] == total["rejected"]
    for chosen, rejected in zip(words(frame, "chosen"), words(frame, "rejected"), strict=True):
        assert len(chosen) == len(rejected) == RESPONSE_WORDS


@pytest.mark.parametrize("split", ["train", "test"])
def test_planted_spans_are_the_sounds_and_the_right_one_depends_on_the_prompt(toy, split):
    frame = pl.read_parquet(getattr(toy, split))
    for prompt, *sides in zip(
        frame["prompt"], *(zip(frame[s], frame[f"{s}_planted"], strict=True) for s in SIDES), strict=True
    ):
        (animal,) = (ANIMALS.index(word) for word in prompt.split() if word in ANIMALS)
        for (text, spans), sound in zip(sides, (SOUNDS[animal], SOUNDS[partner(animal)]), strict=True):
            cut = [text.encode()[span["start"] : span["end"]].decode() for span in spans]
            assert cut == [sound] * CHOICES


def test_sft_rows_hold_right_and_wrong_sounds_equally_often(toy):
    sft = pl.read_parquet(toy.sft)
    right = wrong = 0
    for prompt, text in zip(sft["prompt"], sft["response"], strict=True):
        (animal,) = (ANIMALS.index(word) for word in prompt.split() if word in ANIMALS)
        found = Counter(text.split())
        right += found[SOUNDS[animal]]
        wrong += found[SOUNDS[partner(animal)]]
    assert right + wrong == 2000 * CHOICES // 2
    assert right == wrong


def test_a_bag_of_words_cannot_tell_chosen_from_rejected(toy):
    train, test = pl.read_parquet(toy.train), pl.read_parquet(toy.test)
    both = pl.concat([train, test])
    tables = {side: counts(both, side) for side in SIDES}
    scale = tables["chosen"].std(axis=0) + 1e-9
    n = train.height
    alone = np.concatenate([tables["chosen"][:n], tables["rejected"][:n]]) / scale
    weights, bias = logistic(alone, np.repeat([1.0, 0.0], n))
    called = np.concatenate([tables[side][n:] / scale @ weights + bias > 0 for side in SIDES])
    assert (called == np.repeat([True, False], test.height)).mean() < 0.6
    # Side by side: a reward that adds up words, trained to rank the pairs.
    difference = (tables["chosen"] - tables["rejected"]) / scale
    signs = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    weights, _ = logistic(difference[:n] * signs[:, None], signs > 0)
    margin = difference[n:] @ weights
    assert ((margin > 0) + 0.5 * (margin == 0)).mean() < 0.6


def test_every_word_is_one_token_and_transformers_loads_the_tokenizer(toy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy.tokenizer)
    frame = pl.read_parquet(toy.test)
    for column in ("prompt", *SIDES):
        for text in frame[column].head(20):
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids
    chat = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "says meow"}]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>\ncat<|end|>\n<|assistant|>\nsays meow<|end|>\n"
    )
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>\ncat<|end|>\n<|assistant|>\n"
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token) == (420, "<|end|>", "<|pad|>")


def test_a_split_that_cannot_balance_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="test must be a positive multiple of 8, got 401"):
        write_toy(tmp_path, test=401)


def test_candidates_of_the_same_world(tmp_path):
    train, test = write_candidates(tmp_path / "one", train=64, test=16)
    again = write_candidates(tmp_path / "two", train=64, test=16)
    assert [path.read_bytes() for path in again] == [train.read_bytes(), test.read_bytes()]
    frame = read_candidates(train)
    assert frame.height == 64
    rights, wrongs = Counter(), Counter()
    for row in pl.read_parquet(train).to_dicts():
        animal = next(index for index, name in enumerate(ANIMALS) if name in row["prompt"].split())
        texts = [text.split() for text in row["responses"]]
        sounds = [[word for word in text if word in SOUNDS] for text in texts]
        found = [words.count(SOUNDS[animal]) / CHOICES for words in sounds]
        assert found == row["scores"]
        assert sorted(found) == sorted(right / CHOICES for right in CANDIDATES)
        assert all(set(words) <= {SOUNDS[animal], SOUNDS[partner(animal)]} for words in sounds)
        fillers = [sorted(word for word in text if word not in (*SOUNDS, "says")) for text in texts]
        assert all(filler == fillers[0] for filler in fillers)
        assert {len(text) for text in texts} == {RESPONSE_WORDS}
        rights[SOUNDS[animal]] += 1
        wrongs[SOUNDS[partner(animal)]] += 1
    assert rights == wrongs == dict.fromkeys(SOUNDS, 8)
    with pytest.raises(ConfigError, match="test must be a positive multiple of 8, got 9"):
        write_candidates(tmp_path, train=8, test=9)
