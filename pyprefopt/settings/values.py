"""One setting's value: as YAML or Python gives it, as words of the command line give it, and its type in words."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pyprefopt.errors import LEAST, MOST, WHOLE, ConfigError, did_you_mean

SHOWN = 200  # characters of a value in an error
BOOLEANS = {"true": True, "false": False}


def fit(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`, or a ConfigError naming setting, value and expected type."""
    for kind in kinds_of(hint):
        matched, result = _match(value, kind)
        if matched:
            return result
    raise type_error(name, hint, value)


def check_types(settings: Any, prefix: str = "") -> None:
    """ConfigError for the first field of a settings dataclass, or of one in it, that is not of its type.

    A field that is None by default may be left out.
    """
    cls: Any = type(settings)
    for name, hint in _hints(cls).items():
        value = getattr(settings, name)
        kinds: Any = tuple(kind for kind in kinds_of(hint) if is_dataclass(kind))
        if value is None and getattr(cls, name, ...) is None:
            continue
        if not kinds:
            fit(value, hint, f"{prefix}{name}")
        elif isinstance(value, kinds):
            check_types(value, f"{prefix}{name}.")
        else:
            raise type_error(f"{prefix}{name}", hint, value)


@cache
def _hints(cls: type) -> dict[str, Any]:
    found = get_type_hints(cls)
    return {f.name: found[f.name] for f in fields(cls)}


def from_words(words: Sequence[str], hint: Any, name: str) -> Any:
    """What the words after `--name` mean as the type `hint`; the same errors as `fit`."""
    kinds = kinds_of(hint)
    if bool in kinds and not words:
        return True
    items = [get_args(kind)[:1] for kind in kinds if get_origin(kind) is tuple]
    if not items and len(words) != 1:
        raise ConfigError(f"{name} must have one value, got {list(words)!r}; write --{name} value")
    try:
        if items and str in kinds and len(words) == 1:  # one, or a list
            return words[0]
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
    expected = " or ".join(_describe(kind, far=_is_far(value)) for kind in kinds_of(hint))
    if isinstance(value, str | int | float | list | tuple | dict | None):
        return ConfigError(f"{name} must be {expected}, got {_shortened(value)}{meant}")
    remedy = "; save it (save_pretrained) and give its folder" if hasattr(value, "save_pretrained") else ""
    return ConfigError(f"{name} must be {expected}, got one of type {type(value).__name__}{remedy}")


def _shortened(value: Any) -> str:
    """A value as an error shows it: whole, unless that is too long to be read."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _match(value: Any, hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) is Literal:
        if "inf" in get_args(hint) and isinstance(value, float) and value == math.inf:  # `.inf` in YAML
            return True, "inf"
        matches = any(value == choice and type(value) is type(choice) for choice in get_args(hint))
        return matches, value
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if get_origin(inner) is Literal and isinstance(value, str):  # one choice stands for a list of it
            value = [value]
        is_list = isinstance(value, list | tuple) and all(_match(v, get_args(hint)[0])[0] for v in value)
        return is_list, tuple(value) if is_list else None
    if hint in (int, float):
        return _match_number(value, hint)
    return type(value) is hint, value


def _match_number(value: Any, hint: type) -> tuple[bool, Any]:
    """Numbers of every library, but no booleans, and none that is not finite or too large for the kernels."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False, None
    if hint is int:
        whole = int(value) if isinstance(value, Integral) else MOST + 1
        return LEAST <= whole <= MOST, whole
    with suppress(OverflowError):
        return math.isfinite(value), float(value)
    return False, None


def _is_far(value: Any) -> bool:
    """Whether it is a number, or the word for one, that no setting can have."""
    try:
        return not LEAST <= float(value) <= MOST
    except OverflowError:
        return True
    except (TypeError, ValueError):
        return False


def _read(word: str, kinds: Sequence[Any]) -> Any:
    """One word as the first of the types that takes it; `null` and `none` are texts where texts are allowed."""
    for kind in kinds:
        if kind is bool and word.lower() in BOOLEANS:
            return BOOLEANS[word.lower()]
        if kind in (int, float):
            with suppress(ValueError):
                matched, value = _match_number(kind(word), kind)
                if matched and word.isascii() and "_" not in word:  # as YAML reads it
                    return value
        if get_origin(kind) is Literal and word in map(str, get_args(kind)):
            return next(choice for choice in get_args(kind) if str(choice) == word)
    if type(None) in kinds and (word == "None" or (str not in kinds and word.lower() in ("none", "null"))):
        return None
    if str in kinds:
        return word
    raise ValueError(word)


def _describe(hint: Any, *, far: bool) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is Literal:
        return "a list, each " + _describe(get_args(hint)[0], far=False)
    if get_origin(hint) is tuple:
        return "a list of " + _describe(get_args(hint)[0], far=False).removeprefix("a ") + "s"
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    if far:
        names |= {float: "a finite number", int: WHOLE}
    return names.get(hint) or f"settings of {hint.__name__}"
