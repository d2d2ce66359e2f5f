"""Mutated files and folders: each ends in a sentence or a right result, never in a signal, a panic or a hang."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.data.mutated import samples
from tests.data.mutated.mutate import flip_footer, footer_bits, mutate, mutate_json
from tests.data.mutated.runs import Case, entries, run_cases


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The samples, the prepared folder, and the tokenizer."""
    directory = tmp_path_factory.mktemp("samples")
    return samples.files(), samples.folder(directory), directory / "tokenizer"


def cases(names, count, first=0):
    """So many cases: every sample in turn, then every way to read it."""
    for seed in range(first, first + count):
        number, sample = divmod(seed, len(names))
        name = names[sample]
        yield Case(name, seed, entries(name)[number % len(entries(name))])


def outcomes(material, directory: Path, count: int, first: int = 0) -> Counter[str]:
    files, folder, tokenizer = material
    found: Counter[str] = Counter()
    bad = []
    for outcome in run_cases(cases([*files, "manifest", "shard"], count, first), files, folder, tokenizer, directory):
        found[outcome.kind] += 1
        if not outcome.is_good:
            bad.append(f"{outcome.case}: {outcome.kind}: {outcome.said[:600]}")
    assert not bad, f"{len(bad)} of {count}: " + "\n".join(bad[:5])
    return found


def test_the_samples_are_read(material, tmp_path):
    files, folder, tokenizer = material
    names = [*files, "manifest", "shard"]
    whole = [Case(name, -1, entry) for name in names for entry in entries(name)]
    found = list(run_cases(whole, files, folder, tokenizer, tmp_path / "w", change=None))
    refused = {(outcome.case.sample, outcome.said) for outcome in found if outcome.kind != "right"}
    assert {name for name, _ in refused} == {"one.feather"}
    assert all("Feather's first version" in said for _, said in refused)


def test_mutations_change_and_repeat():
    content = bytes(range(256)) * 4
    assert sum(mutate(content, seed) != content for seed in range(100)) > 90
    assert [mutate(content, seed) for seed in range(50)] == [mutate(content, seed) for seed in range(50)]
    text = b'{"a": [1, {"b": "c"}], "d": null}'
    assert len({mutate_json(text, seed) for seed in range(100)}) > 50


def test_some_hundreds(material, tmp_path):
    found = outcomes(material, tmp_path / "w", 500)
    assert found["right"] > 50
    assert found["refused"] > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand(material, tmp_path, capsys):
    found = outcomes(material, tmp_path / "w", 10_000, first=1_000_000)
    with capsys.disabled():
        print("\n10,000 mutated files: " + ", ".join(f"{kind} {count:,}" for kind, count in found.most_common()))


def flipped(material, directory: Path, step: int) -> Counter[str]:
    """What comes of every so many-th bit of each Parquet footer turned."""
    _, folder, tokenizer = material
    files = samples.parquets()
    todo = [Case(name, bit, "read") for name, content in files.items() for bit in range(0, footer_bits(content), step)]
    found: Counter[str] = Counter()
    bad = []
    for outcome in run_cases(todo, files, folder, tokenizer, directory, change=flip_footer):
        found[outcome.kind] += 1
        if not outcome.is_good:
            bad.append(f"{outcome.case}: {outcome.kind}: {outcome.said[:600]}")
    assert not bad, f"{len(bad)} of {len(todo)}: " + "\n".join(bad[:5])
    return found


def test_bits_of_parquet_footers(material, tmp_path):
    found = flipped(material, tmp_path / "w", 31)  # among them some at which pyarrow's own metadata ends the process
    assert found["right"] > 50
    assert found["refused"] > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_bit_of_parquet_footers(material, tmp_path, capsys):
    found = flipped(material, tmp_path / "w", 1)
    with capsys.disabled():
        print("\nevery bit of footers: " + ", ".join(f"{kind} {count:,}" for kind, count in found.most_common()))


def test_a_worker_sees_signals_and_hangs(material, tmp_path, monkeypatch):
    """The net itself: what ends a process, and what does not end, is told apart."""
    files, folder, tokenizer = material
    monkeypatch.setattr("tests.data.mutated.runs.SECONDS", 2)
    found = run_cases(
        [Case("texts.csv", 1, "abort"), Case("texts.csv", 1, "sleep"), Case("texts.csv", 1, "raise")],
        files, folder, tokenizer, tmp_path / "w", workers=1,
    )  # fmt: skip
    assert [outcome.kind for outcome in found] == ["signal", "hang", "raised"]
