"""The revision prompts: what stands in them, and what a file of one's own must hold."""

from __future__ import annotations

import pytest

from pyprefopt.errors import ConfigError
from pyprefopt.rewards import Contrastive
from pyprefopt.rewards.contrastive import END, START, transcript

SINGLE = [{"role": "user", "content": "Why is the sky blue?"}]
MULTI = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Why is the sky blue?"},
]


def test_transcripts():
    assert transcript(SINGLE) == "Why is the sky blue?"
    whole = "System: Be kind.\n\nUser: Hello\n\nAssistant: Hi!\n\nUser: Why is the sky blue?"
    assert transcript(MULTI) == whole
    assert transcript(MULTI, "last") == "Why is the sky blue?"


@pytest.mark.parametrize("direction", ["better", "worse"])
def test_the_shipped_prompts_ask_what_the_paper_asks(direction):
    provider = Contrastive()
    text = provider.revision(provider.prompt(direction), SINGLE, "Because of dust.")
    for part in ("Why is the sky blue?", "Because of dust.", START, END, direction):
        assert part in text
    good = ("helpful", "correct", "coherent", "concise")
    bad = ("unhelpful", "incorrect", "incoherent", "verbose")
    assert ", ".join((good if direction == "better" else bad)[:3]) in text
    assert "{" not in text
    assert text.index("Why is the sky blue?") < text.index("Because of dust.") < text.index(START)


def test_the_two_prompts_differ_only_where_they_must():
    better, worse = (Contrastive().prompt(direction).splitlines() for direction in ("better", "worse"))
    assert len(better) == len(worse)
    assert 0 < sum(a != b for a, b in zip(better, worse, strict=True)) <= 4


def test_braces_of_the_users_texts_stay():
    provider = Contrastive()
    text = provider.revision(
        "{conversation}|{answer}|{start}", [{"role": "user", "content": "{answer}"}], "{start} {x}"
    )
    assert text == f"{{answer}}|{{start}} {{x}}|{START}"


def test_prefix():
    assert Contrastive().forced == f"{START}\n"
    assert Contrastive(prefix="none").forced == ""


def test_own_prompts(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("{conversation} {answer} {start}")
    assert Contrastive(better_prompt=str(own)).prompt("better") == "{conversation} {answer} {start}"
    assert Contrastive(better_prompt=str(own)).prompt("worse") == Contrastive().prompt("worse")
    own.write_text("{conversation} {answer}")
    with pytest.raises(ConfigError, match=r"rewards.better_prompt must hold \{start\}.*or set rewards.prefix none"):
        Contrastive(better_prompt=str(own)).prompt("better")
    assert Contrastive(better_prompt=str(own), prefix="none").prompt("better")
    own.write_text("{conversation} {answer} {start} {stop}")
    message = r"rewards.better_prompt must be a text with the places .*\{end\} only, got '\{stop\}'; mend '"
    with pytest.raises(ConfigError, match=message):
        Contrastive(better_prompt=str(own)).prompt("better")
    own.write_text("{conversation} {start}")
    with pytest.raises(ConfigError, match=r"rewards.worse_prompt must hold \{answer\}"):
        Contrastive(worse_prompt=str(own)).prompt("worse")
    with pytest.raises(ConfigError, match=r"rewards.worse_prompt must be an existing text file, got 'nowhere.txt'"):
        Contrastive(worse_prompt="nowhere.txt").prompt("worse")
