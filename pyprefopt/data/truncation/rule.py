"""The settings of a truncation: what is kept of each response, and how a cut one ends. Loads no Polars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from inspect import signature
from typing import Any, Literal, get_args

from pyprefopt.errors import ConfigError, check, check_number, did_you_mean

Unit = Literal["tokens", "characters", "words", "sentences"]
Rounding = Literal["ceil", "floor"]
RatioBase = Literal["own", "shared_min"]
CutEnd = Literal["none", "eos", "template"]


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Keep only the first part of each response (shallow preference signals). Off unless ratio or tokens is set."""

    ratio: float | None = None  # share of each response's content tokens that is kept; (0, 1]
    tokens: int | None = None  # content tokens of each response that are kept
    rounding: Rounding = "ceil"  # how ratio * length becomes a number of tokens (at least 1)
    ratio_base: RatioBase = "own"  # ratio of each response's length, or of the pair's shorter one
    cut_end: CutEnd = "none"  # after a cut: nothing, the EOS token, the template's turn end

    def __post_init__(self) -> None:
        both = self.ratio is not None and self.tokens is not None
        check(not both, "truncation", (self.ratio, self.tokens), "either ratio or tokens", "leave one of them out")
        if self.ratio is not None:
            check_number("ratio", self.ratio)
            check(0 < self.ratio <= 1, "ratio", self.ratio, "in (0, 1]")
        if self.tokens is not None:
            check_number("tokens", self.tokens, whole=True)
            check(self.tokens > 0, "tokens", self.tokens, "> 0")
        for name, kind in (("rounding", Rounding), ("ratio_base", RatioBase), ("cut_end", CutEnd)):
            value, known = getattr(self, name), get_args(kind)
            check(value in known, name, value, f"one of {', '.join(known)}")

    @property
    def length(self) -> int | None:
        """Units of each response that are kept."""
        return self.tokens

    @property
    def unit(self) -> Unit:
        """What is counted."""
        return "tokens"

    @property
    def active(self) -> bool:
        """Whether anything is cut."""
        return self.ratio is not None or self.length is not None

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not as they are where nothing is cut."""
        off = asdict(Truncation())
        return {name: value for name, value in asdict(self).items() if value != off[name]}

    @property
    def cut(self) -> dict[str, Any]:
        """What the kernels take."""
        return {"ratio": self.ratio, "length": self.length, "rounding": self.rounding}


@dataclass(frozen=True, kw_only=True)
class Cut(Truncation):
    """A truncation as `data.truncate` takes it: in any unit, and of exactly one amount."""

    length: int | None = None  # units of each response that are kept
    unit: Unit = "tokens"  # what is counted

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.length is None):
            given = "neither" if self.ratio is None else f"ratio {self.ratio} and length {self.length}"
            raise ConfigError(f"truncate must be given exactly one of ratio and length (or tokens), got {given}")
        if self.length is not None:
            check_number("length", self.length, whole=True)
            check(self.length >= 1, "length", self.length, "at least 1")
            check(self.length < 1 << 63, "length", self.length, "below 2^63")
        check(self.unit in get_args(Unit), "unit", self.unit, f"one of {', '.join(get_args(Unit))}")
        super().__post_init__()


def make_cut(
    *,
    ratio: float | None = None,
    length: int | None = None,
    tokens: int | None = None,
    unit: Unit = "tokens",
    rounding: Rounding | None = None,
    ratio_base: RatioBase | None = None,
    cut_end: CutEnd = "none",
) -> Cut:
    """The settings of `data.truncate`, checked. What only a ratio has is None where it is left out."""
    if tokens is not None:
        check(length is None, "length and tokens", (length, tokens), "one of the two")
        check(unit == "tokens", "unit", unit, "'tokens' with tokens", f"give length {tokens} instead")
        length = tokens
    of_ratio = {"rounding": rounding, "ratio_base": ratio_base}
    given: dict[str, Any] = {name: value for name, value in of_ratio.items() if value is not None}
    made = Cut(ratio=ratio, length=length, unit=unit, cut_end=cut_end, **given)
    reasons = {"rounding": "only a ratio is rounded", "ratio_base": "it is what a ratio is of"}
    for name, value in given.items():
        check(ratio is not None, name, value, "left out without ratio", reasons[name])
    return made


def of_segments(settings: Mapping[str, Any]) -> Truncation:
    """Settings of `data.truncate` for token segments; none: nothing is cut.

    Raises:
        ConfigError: an unknown setting, one that breaks its rule, or another unit than tokens.
    """
    for name in settings:
        if name not in (known := signature(make_cut).parameters):
            raise ConfigError(f"unknown setting 'truncation.{name}'{did_you_mean(name, known)}")
    if not settings:
        return Truncation()
    made = make_cut(**settings)
    check_unit(made)
    shared = {f.name: getattr(made, f.name) for f in fields(Truncation)}
    return Truncation(**shared | {"tokens": made.length})


def check_unit(rule: Truncation) -> None:
    """ConfigError for a unit that token segments do not have."""
    check(rule.unit == "tokens", "unit", rule.unit, "'tokens' for a frame of token ids")
