"""The settings of a truncation: what is kept of each response, and how a cut one ends. Loads no Polars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any, Literal, get_args

from pyprefopt.errors import ConfigError, check, check_number, did_you_mean

Unit = Literal["tokens", "characters", "words", "sentences"]
Rounding = Literal["ceil", "floor"]
RatioBase = Literal["own", "shared_min"]
CutEnd = Literal["none", "eos", "template"]
AMOUNTS = ("ratio", "length", "tokens")


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Keep only the first part of each response (shallow preference signals). Off unless an amount is set.

    Tokens are cut behind the tokenization; characters, words and sentences are cut off the texts before it.
    """

    ratio: float | None = None  # share of each response's units that is kept; (0, 1]
    length: int | None = None  # units of each response that are kept
    tokens: int | None = None  # short for length, of unit tokens
    unit: Unit = "tokens"  # what is counted: tokens, characters (code points), words or sentences of the content
    rounding: Rounding = "ceil"  # how ratio * units becomes a number of units (at least 1)
    ratio_base: RatioBase = "own"  # ratio of each response's length, or of the pair's shorter one
    cut_end: CutEnd = "none"  # after a cut: nothing, the EOS token, the template's turn end

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in AMOUNTS if getattr(self, name) is not None}
        words = " and ".join(f"{name} {value}" for name, value in given.items())
        check(len(given) < 2, "truncation", words, f"one of {', '.join(AMOUNTS)}", "leave the others out")
        if self.ratio is not None:
            check_number("ratio", self.ratio)
            check(0 < self.ratio <= 1, "ratio", self.ratio, "in (0, 1]")
        for name in ("length", "tokens"):
            if name in given:
                check_number(name, given[name], whole=True)
                check(given[name] > 0, name, given[name], "> 0")
        for name, kind in (("unit", Unit), ("rounding", Rounding), ("ratio_base", RatioBase), ("cut_end", CutEnd)):
            value, known = getattr(self, name), get_args(kind)
            check(value in known, name, value, f"one of {', '.join(known)}")
        counted = self.tokens is None or self.unit == "tokens"
        check(counted, "unit", self.unit, "'tokens' with tokens", f"give length {self.tokens} instead")

    @property
    def amount(self) -> int | None:
        """Units of each response that are kept; None of a ratio."""
        return self.length if self.tokens is None else self.tokens

    @property
    def active(self) -> bool:
        """Whether anything is cut."""
        return self.ratio is not None or self.amount is not None

    @property
    def of_texts(self) -> bool:
        """Whether texts are cut, before they are tokenized."""
        return self.active and self.unit != "tokens"

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not as they are where nothing is cut, each under one name."""
        settings, off = asdict(self) | {"length": self.amount, "tokens": None}, asdict(Truncation())
        return {name: value for name, value in settings.items() if value != off[name]}

    @property
    def cut(self) -> dict[str, Any]:
        """What the kernels take."""
        return {"ratio": self.ratio, "length": self.amount, "rounding": self.rounding}


def make_cut(
    *,
    ratio: float | None = None,
    length: int | None = None,
    tokens: int | None = None,
    unit: Unit = "tokens",
    rounding: Rounding | None = None,
    ratio_base: RatioBase | None = None,
    cut_end: CutEnd = "none",
) -> Truncation:
    """The settings of `data.truncate`, checked: one amount, and what only a ratio has is None where it is left out."""
    amounts = {"ratio": ratio, "length": length, "tokens": tokens}
    words = " and ".join(f"{name} {value}" for name, value in amounts.items() if value is not None)
    if sum(value is not None for value in amounts.values()) != 1:
        raise ConfigError(f"truncate must be given exactly one of ratio, length and tokens, got {words or 'none'}")
    of_ratio = {"rounding": rounding, "ratio_base": ratio_base}
    given: dict[str, Any] = {name: value for name, value in of_ratio.items() if value is not None}
    made = Truncation(ratio=ratio, length=length, tokens=tokens, unit=unit, cut_end=cut_end, **given)
    reasons = {"rounding": "only a ratio is rounded", "ratio_base": "it is what a ratio is of"}
    for name, value in given.items():
        check(ratio is not None, name, value, "left out without ratio", reasons[name])
    return made


def make_truncation(settings: Mapping[str, Any]) -> Truncation:
    """Settings of `data.truncate` by name; none: nothing is cut.

    Raises:
        ConfigError: an unknown setting, or one that breaks its rule.
    """
    for name in settings:
        if name not in (known := signature(make_cut).parameters):
            raise ConfigError(f"unknown setting 'truncation.{name}'{did_you_mean(name, known)}")
    return make_cut(**settings) if settings else Truncation()


def check_unit(rule: Truncation) -> None:
    """ConfigError for a unit that token segments do not have."""
    check(rule.unit == "tokens", "unit", rule.unit, "'tokens' for a frame of token ids")
