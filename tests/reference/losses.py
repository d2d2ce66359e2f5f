"""Slow float64 twins of the losses: Python loops over tokens, written from the papers' formulas.

Each function gives the loss of one pair and its derivative by every response token's log-prob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Response:
    """Log-probs of all response tokens; `selected` marks those that selection kept, `ratio` is its k."""

    policy: list[float]
    ref: list[float]
    selected: list[bool]
    ratio: float = 1.0


Result = tuple[float, list[float], list[float]]  # loss, by chosen's log-probs, by rejected's log-probs


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x >= 0 else -x + math.log1p(math.exp(x))


def _weighted(response: Response, weight: float, *, log_ratio: bool) -> float:
    total = 0.0
    for s, ref, selected in zip(response.policy, response.ref, response.selected, strict=True):
        if selected:
            total += weight * (s - ref if log_ratio else s)
    return total


def _spread(response: Response, value: float) -> list[float]:
    return [value if selected else 0.0 for selected in response.selected]


def dpo(chosen: Response, rejected: Response, beta: float = 0.1, label_smoothing: float = 0.0) -> Result:
    z = _weighted(chosen, beta, log_ratio=True) - _weighted(rejected, beta, log_ratio=True)
    e = label_smoothing
    loss = (1 - e) * minus_log_sigmoid(z) + e * minus_log_sigmoid(-z)
    slope = -(1 - e) * sigmoid(-z) + e * sigmoid(z)
    return loss, _spread(chosen, slope * beta), _spread(rejected, -slope * beta)


def simpo(chosen: Response, rejected: Response, beta: float = 2.5, gamma: float = 1.4) -> Result:
    w, v = beta / len(chosen.policy), beta / len(rejected.policy)
    z = _weighted(chosen, w, log_ratio=False) - _weighted(rejected, v, log_ratio=False) - gamma
    slope = -sigmoid(-z)
    return minus_log_sigmoid(z), _spread(chosen, slope * w), _spread(rejected, -slope * v)


def sepo(chosen: Response, rejected: Response, reward_scale: float = 1.0, normalizer: str = "ratio") -> Result:
    def weight(response: Response) -> float:
        if normalizer == "ratio":
            return reward_scale / (len(response.policy) * response.ratio)
        return reward_scale / sum(response.selected)

    w, v = weight(chosen), weight(rejected)
    z = _weighted(chosen, w, log_ratio=False) - _weighted(rejected, v, log_ratio=False)
    slope = -sigmoid(-z)
    return minus_log_sigmoid(z), _spread(chosen, slope * w), _spread(rejected, -slope * v)


def sft(response: Response) -> tuple[float, list[float]]:
    """Not yet divided by the step's number of tokens."""
    return -_weighted(response, 1.0, log_ratio=False), _spread(response, -1.0)
