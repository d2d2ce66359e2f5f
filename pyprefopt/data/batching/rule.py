"""The settings of a token selection. Loads no Polars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pyprefopt.errors import check, check_number

Rounding = Literal["half_up", "floor", "ceil"]
Method = Literal["top_k", "threshold", "random"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Token selection by oracle scores (top_k: SePO Eq. 25), or by chance. Off where no ratio or threshold is set."""

    method: Method = "top_k"  # by ratio, by score, or as many as top_k by chance
    chosen_ratio: float | None = None  # share of each chosen response's tokens, highest scores; sepo: 0.3
    rejected_ratio: float | None = None  # share of each rejected response's tokens, lowest scores; sepo: 0.3
    chosen_threshold: float | None = None  # least score (nats) of a chosen token that is kept, method threshold
    rejected_threshold: float | None = None  # greatest score (nats) of a rejected token that is kept, method threshold
    rounding: Rounding = "half_up"  # how k * T becomes a number of tokens
    minimum: int = 1  # tokens of each response that are kept at least, the best ones; usual 1
    excluded_ids: tuple[int, ...] = ()  # token ids that are never selected, for example of punctuation

    def __post_init__(self) -> None:
        methods = get_args(Method)
        check(self.method in methods, "method", self.method, f"one of {', '.join(methods)}")
        for side in ("chosen", "rejected"):
            for name, check_amount in ((f"{side}_ratio", check_ratio), (f"{side}_threshold", check_threshold)):
                value = getattr(self, name)
                if value is not None:
                    check_amount(name, value)
        check(self.rounding in get_args(Rounding), "rounding", self.rounding, "'half_up', 'floor' or 'ceil'")
        check_number("minimum", self.minimum, whole=True)
        check(self.minimum >= 0, "minimum", self.minimum, ">= 0", "usual 1; 0 lets a list go without a selected token")
        for token in self.excluded_ids:
            check_number("excluded_ids", token, whole=True)
        bad = [token for token in self.excluded_ids if not 0 <= token < 1 << 24]
        check(not bad, "excluded_ids", bad[:1], "token ids, from 0 up to 2^24")

    @property
    def ratios(self) -> tuple[float | None, float | None]:
        """Of chosen and of rejected responses."""
        return self.chosen_ratio, self.rejected_ratio

    @property
    def thresholds(self) -> tuple[float | None, float | None]:
        """Of chosen and of rejected responses."""
        return self.chosen_threshold, self.rejected_threshold

    @property
    def active(self) -> bool:
        """Whether tokens are selected."""
        return self.ratios != (None, None) or self.thresholds != (None, None)

    @property
    def needs_scores(self) -> bool:
        """Whether an oracle decides."""
        return self.active and self.method != "random"

    def kernel(self, sides: Sequence[tuple[float, bool]] | None = None, seed: int = 0) -> dict[str, Any]:
        """What the extension takes. `sides`: (ratio or threshold, largest) of each; None: of chosen and rejected."""
        if sides is None:
            given, everything = (self.ratios, (1.0, 1.0))
            if self.method == "threshold":
                given, everything = self.thresholds, (-math.inf, math.inf)
            amounts = [default if value is None else value for value, default in zip(given, everything, strict=True)]
            sides = [(amounts[0], True), (amounts[1], False)]
        return {
            "method": self.method, "sides": list(sides), "rounding": self.rounding, "minimum": self.minimum,
            "excluded": list(self.excluded_ids), "seed": seed,
        }  # fmt: skip


def token_ids(excluded_ids: Iterable[int]) -> tuple[int, ...]:
    """The ids as a rule holds them; ConfigError for what is no list."""
    listed = isinstance(excluded_ids, Iterable) and not isinstance(excluded_ids, str)
    check(listed, "excluded_ids", excluded_ids, "a list of token ids")
    return tuple(excluded_ids)


def check_ratio(name: str, ratio: float) -> None:
    """ConfigError unless it is a share of tokens."""
    check_number(name, ratio, remedy="in (0, 1]; the paper uses 0.3 or 0.5")
    check(0 < ratio <= 1, name, ratio, "in (0, 1]", "the paper uses 0.3 or 0.5")


def check_threshold(name: str, threshold: float) -> None:
    """ConfigError unless it is a number; -inf and inf take all tokens."""
    check_number(name, threshold)
    check(not math.isnan(threshold), name, threshold, "a number")
