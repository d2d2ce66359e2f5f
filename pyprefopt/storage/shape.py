"""JSON that comes from disk, compared with the shape in which it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# str, bool, int (0 or more), float or None; a tuple of shapes, one of which fits; [shape] for each entry of a list;
# {name: shape} for what an object has at least; {...: shape} for each of its values
Shape = Any

_WORDS = {str: "text", bool: "true or false", int: "a whole number, 0 or more", float: "a number", None: "null"}


def misfit(value: Any, shape: Shape, name: str = "") -> str:
    """`rows must be a whole number, 0 or more, got 'a'`; empty where the value has the shape."""
    return next(_misfits(value, shape, name), "")


def _misfits(value: Any, shape: Shape, name: str) -> Iterator[str]:
    if isinstance(shape, tuple):
        if all(misfit(value, one, name) for one in shape):
            yield _refusal(value, " or ".join(map(_describe, shape)), name)
    elif isinstance(shape, dict | list) and not isinstance(value, type(shape)):
        yield _refusal(value, _describe(shape), name)
    elif isinstance(shape, dict):
        yield from _misfits_inside(value, shape, f"{name}." if name else "")
    elif isinstance(shape, list):
        for index, entry in enumerate(value):
            yield from _misfits(entry, shape[0], f"{name}[{index}]")
    elif not _is(value, shape):
        yield _refusal(value, _WORDS[shape], name)


def _misfits_inside(value: dict[str, Any], shape: dict[Any, Shape], inside: str) -> Iterator[str]:
    for key, kind in shape.items():
        if key is ...:
            for other, entry in value.items():
                if not _is_text(other):
                    yield _refusal(other, "text", f"a name in {inside}")
                yield from _misfits(entry, kind, f"{inside}{other}")
        elif key in value:
            yield from _misfits(value[key], kind, f"{inside}{key}")
        else:
            yield f"{inside}{key} is missing"


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is str:
        return _is_text(value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, int) and 0 <= value < 1 << 63


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _describe(shape: Shape) -> str:
    return "an object" if isinstance(shape, dict) else "a list" if isinstance(shape, list) else _WORDS[shape]


def _refusal(value: Any, rule: str, name: str) -> str:
    shown = ascii(value)
    return f"{ascii(name)[1:-1] or 'it'} must be {rule}, got {shown if len(shown) < 60 else shown[:60] + '…'}"
