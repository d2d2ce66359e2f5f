"""The errors that a user can meet. Each message names setting (or file, row, field), value, rule and remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from numbers import Integral, Real

LEAST, MOST = -(2**63), 2**64 - 1  # of whole numbers: what the kernels take
WHOLE = "a whole number from -2^63 up to 2^64"


class PyprefoptError(Exception):
    """Base of all errors that pyprefopt raises on purpose."""

    same_on_all_ranks = False  # every rank of a run raises the same one: it is printed once


class ConfigError(PyprefoptError, ValueError):
    """A setting breaks its rule, or two settings contradict each other."""


class DataError(PyprefoptError, ValueError):
    """Input data breaks its rule: names file, row, field, value and remedy."""


class ArtifactError(PyprefoptError, RuntimeError):
    """Something on disk (a stage's artifact, a checkpoint, a lock) is not what it must be."""


class TrainingError(PyprefoptError, RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""


_NAME = 100  # characters of what can be a name with a slip in it
_NAMES = 1000  # that are compared with it


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean 'beta'?` for the nearest known name, or an empty string."""
    if len(str(name)) > _NAME:
        return ""
    names = [other for other in islice(known, _NAMES) if len(other) <= _NAME]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ""


def counted(number: int, noun: str) -> str:
    """The number with its noun, as a person writes it.

    >>> counted(1, "shard"), counted(1200, "row")
    ('1 shard', '1,200 rows')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def agreeing(number: int, verb: str) -> str:
    """The verb behind a number, as a person writes it.

    >>> agreeing(1, "have"), agreeing(2, "have")
    ('has', 'have')
    """
    return _OF_ONE[verb] if number == 1 else verb


_OF_ONE = {"are": "is", "change": "changes", "get": "gets", "have": "has", "hold": "holds"}


_typed = False  # whether settings are typed on the command line, not passed in Python


@contextmanager
def on_command_line() -> Iterator[None]:
    """Messages name settings as the command line writes them."""
    global _typed  # noqa: PLW0603
    before, _typed = _typed, True
    try:
        yield
    finally:
        _typed = before


def option(name: str, value: object = None) -> str:
    """A setting as it is written where the user is: `--name value` on the command line, `name='value'` in Python.

    >>> option("overwrite", True), option("format")
    ('overwrite=True', 'format')
    """
    if not _typed:
        return name if value is None else f"{name}={value!r}"
    return f"--{name}" if value is None or value is True else f"--{name} {value}"


def check(condition: bool, setting: str, value: object, rule: str, remedy: str = "") -> None:
    """Raise a ConfigError in the house's wording unless `condition` holds.

    >>> check(False, "loss.beta", -0.1, "> 0", "usual range 0.01 to 0.5")
    Traceback (most recent call last):
    ...
    pyprefopt.errors.ConfigError: loss.beta must be > 0, got -0.1; usual range 0.01 to 0.5
    """
    if not condition:
        raise ConfigError(f"{setting} must be {rule}, got {value!r}" + (f"; {remedy}" if remedy else ""))


def check_number(setting: str, value: object, *, whole: bool = False, remedy: str = "") -> None:
    """Raise a ConfigError unless the value is a number (NumPy's too, but no boolean), or with `whole` a whole one."""
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    check(is_number, setting, value, "a whole number" if whole else "a number", remedy)
    if isinstance(value, Integral):
        check(LEAST <= int(value) <= MOST, setting, value, WHOLE, remedy)


def check_scale(setting: str, value: float, remedy: str = "", *, zero: bool = False) -> None:
    """Raise a ConfigError unless the value is a finite number > 0; with `zero` it may be 0 too."""
    check_number(setting, value, remedy=remedy)
    rule = ">= 0" if zero else "> 0"
    check(0 < value < math.inf or (zero and value == 0), setting, value, f"{rule} and finite", remedy)
