"""One setting's value: as YAML or Python gives it, as words of the command line give it, and its type in words."""

from __future__ import annotations

import types
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin

from pyprefopt.errors import ConfigError, did_you_mean

BOOLEANS = {"true": True, "false": False}


def fit(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`, or a ConfigError naming setting, value and expected type."""
    for kind in kinds_of(hint):
        matched, result = _match(value, kind)
        if matched:
            return result
    raise type_error(name, hint, value)


def from_words(words: Sequence[str], hint: Any, name: str) -> Any:
    """What the words after `--name` mean as the type `hint`; the same errors as `fit`."""
    kinds = kinds_of(hint)
    if bool in kinds and not words:
        return True
    items = [get_args(kind)[:1] for kind in kinds if get_origin(kind) is tuple]
    if not items and len(words) != 1:
        raise ConfigError(f"{name} must have one value, got {list(words)!r}; write --{name} value")
    try:
        return tuple(_read(word, items[0]) for word in words) if items else _read(words[0], kinds)
    except ValueError:
        raise type_error(name, hint, " ".join(words)) from None


def words_wanted(words: Sequence[str], hint: Any) -> int:
    """How many of the words after an option are its own: one, all for a list, one or none for a flag."""
    kinds = kinds_of(hint)
    if any(get_origin(kind) is tuple for kind in kinds):
        return len(words)
    return 0 if bool in kinds and words and words[0].lower() not in BOOLEANS else 1


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows; of any other type, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def type_error(name: str, hint: Any, value: Any) -> ConfigError:
    """The error for a value that is not of the type `hint`, with the nearest of the names that it may have."""
    names = [c for kind in kinds_of(hint) if get_origin(kind) is Literal for c in get_args(kind) if isinstance(c, str)]
    meant = did_you_mean(value.lower(), names) if isinstance(value, str) else ""
    expected = " or ".join(_describe(kind) for kind in kinds_of(hint))
    return ConfigError(f"{name} must be {expected}, got {value!r}{meant}")


def _match(value: Any, hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) is Literal:
        matches = any(value == choice and type(value) is type(choice) for choice in get_args(hint))
        return matches, value
    if get_origin(hint) is tuple:
        is_list = isinstance(value, list | tuple) and all(_match(v, get_args(hint)[0])[0] for v in value)
        return is_list, tuple(value) if is_list else None
    if hint is float and type(value) is int:
        return True, float(value)
    return type(value) is hint, value  # exact: True is no int


def _read(word: str, kinds: Sequence[Any]) -> Any:
    """One word as the first of the types that takes it; `null` and `none` are texts where texts are allowed."""
    for kind in kinds:
        if kind is bool and word.lower() in BOOLEANS:
            return BOOLEANS[word.lower()]
        if kind in (int, float):
            with suppress(ValueError):
                return kind(word)
        if get_origin(kind) is Literal and word in map(str, get_args(kind)):
            return next(choice for choice in get_args(kind) if str(choice) == word)
    if type(None) in kinds and (word == "None" or (str not in kinds and word.lower() in ("none", "null"))):
        return None
    if str in kinds:
        return word
    raise ValueError(word)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of " + _describe(get_args(hint)[0]).removeprefix("a ") + "s"
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    return names[hint]
