"""Words of the command line as values of a type."""

from __future__ import annotations

from typing import Literal

import pytest

from pyprefopt.errors import ConfigError
from pyprefopt.settings.values import from_words, words_wanted


@pytest.mark.parametrize(
    ("words", "hint", "value"),
    [
        (["3"], int, 3),
        (["3"], float, 3.0),
        (["1e-7"], float | None, 1e-7),
        (["null"], float | None, None),
        (["none"], int | None, None),
        (["None"], str | None, None),
        (["none"], str | None, "none"),
        (["null"], str | None, "null"),
        (["none"], Literal["marker", "none"] | None, "none"),
        (["None"], Literal["marker", "none"] | None, None),
        (["2"], Literal[0, 1, 2], 2),
        ([], bool, True),
        (["False"], bool, False),
        (["true"], bool | None, True),
        ([], tuple[str, ...], ()),
        (["1", "2"], tuple[int, ...], (1, 2)),
        (["a"], tuple[str, ...] | None, ("a",)),
    ],
)
def test_words_are_values_of_the_type(words, hint, value):
    found = from_words(words, hint, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "hint", "message"),
    [
        (["1.5"], int, "x must be a whole number, got '1.5'"),
        (["1", "b"], tuple[int, ...], "x must be a list of whole numbers, got '1 b'"),
        ([], str, r"x must have one value, got \[\]; write --x value"),
        (["maybe"], bool, "x must be true or false, got 'maybe'"),
        (["None"], int, "x must be a whole number, got 'None'"),
        (["Eos"], Literal["none", "eos"], "x must be one of 'none', 'eos', got 'Eos'; did you mean 'eos'"),
    ],
)
def test_other_words_are_refused(words, hint, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        from_words(words, hint, "x")


def test_how_many_words_an_option_takes():
    assert words_wanted(["a", "b"], str) == 1
    assert words_wanted(["a", "b"], tuple[str, ...]) == 2
    assert words_wanted(["a"], bool) == 0
    assert words_wanted(["true", "a"], bool) == 1
