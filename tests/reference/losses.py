"""Slow float64 twins of the losses: Python loops over tokens, written from the papers' formulas.

Each function gives the loss of one pair and its derivative by every response token's log-prob. Token t of a response is
at position t; tokens that selection dropped count nothing but are part of the length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Response:
    """Log-probs of all response tokens; `selected` marks those that selection kept, `ratio` is its k.

    `rewards` are token rewards, `kl` the divergence of the reference from the policy at each position.
    """

    policy: list[float]
    ref: list[float]
    selected: list[bool]
    ratio: float = 1.0
    rewards: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)


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


def _kept(response: Response) -> list[int]:
    return [t for t in range(len(response.policy)) if response.selected[t]]


def _by_weight(
    chosen: Response,
    rejected: Response,
    weight: Callable[[Response, int, int], float],
    *,
    log_ratio: bool = True,
    shift: float = 0.0,
    label_smoothing: float = 0.0,
) -> Result:
    """-log sigmoid of (weighted sum of chosen) - (weighted sum of rejected) + shift; weight(response, t, side)."""
    z = shift
    for response, side in ((chosen, 1), (rejected, -1)):
        for t in _kept(response):
            value = response.policy[t] - (response.ref[t] if log_ratio else 0.0)
            z += side * weight(response, t, side) * value
    e = label_smoothing
    slope = -(1 - e) * sigmoid(-z) + e * sigmoid(z)
    gradients = []
    for response, side in ((chosen, 1), (rejected, -1)):
        by = [0.0] * len(response.policy)
        for t in _kept(response):
            by[t] = slope * side * weight(response, t, side)
        gradients.append(by)
    return (1 - e) * minus_log_sigmoid(z) + e * minus_log_sigmoid(-z), gradients[0], gradients[1]


def ipo(chosen: Response, rejected: Response, beta: float = 0.1, length_normalized: bool = True) -> Result:
    means = []
    for response in (chosen, rejected):
        total = 0.0
        for t in _kept(response):
            total += response.policy[t] - response.ref[t]
        means.append(total / len(response.policy) if length_normalized else total)
    distance = means[0] - means[1] - 1 / (2 * beta)
    gradients = []
    for response, side in ((chosen, 1), (rejected, -1)):
        size = len(response.policy) if length_normalized else 1
        gradients.append(_spread(response, 2 * distance * side / size))
    return distance**2, gradients[0], gradients[1]


def r_dpo(chosen: Response, rejected: Response, beta: float = 0.1, alpha: float = 0.01) -> Result:
    shift = alpha * (len(chosen.policy) - len(rejected.policy))
    return _by_weight(chosen, rejected, lambda r, t, side: beta, shift=shift)


def d2po(chosen: Response, rejected: Response, beta: float = 0.1, decay: float = 0.98) -> Result:
    return _by_weight(chosen, rejected, lambda r, t, side: beta * decay**t)


def temporal(chosen: Response, rejected: Response, scale: float, decay: float, support: str = "own") -> Result:
    common = min(len(chosen.policy), len(rejected.policy))

    def weight(response: Response, t: int, side: int) -> float:
        length = len(response.policy) if support == "own" else common
        total = sum(decay**u for u in range(length))
        return scale * decay**t / total if t < length else 0.0

    return _by_weight(chosen, rejected, weight)


def tdpo(chosen: Response, rejected: Response, beta: float, scale: float) -> Result:
    """Both variants have this value and, the divergences held fixed, this derivative by the log-probs."""
    kl = [sum(response.kl[t] for t in _kept(response)) for response in (chosen, rejected)]
    return _by_weight(chosen, rejected, lambda r, t, side: beta, shift=-beta * scale * (kl[1] - kl[0]))


def tgdpo(chosen: Response, rejected: Response, beta: float, alpha: float, shape: str, clamp: bool = False) -> Result:
    def weight(response: Response, t: int, side: int) -> float:
        u = alpha * response.rewards[t] if side == 1 else -alpha * response.rewards[t]
        f = 1 + u if shape == "linear" else 2 * sigmoid(u)
        return beta * (max(f, 0.0) if clamp else f)

    return _by_weight(chosen, rejected, weight)


def tis_dpo(
    chosen: Response, rejected: Response, beta: float, k: float, mu: float, lower: float, upper: float
) -> Result:
    def weight(response: Response, t: int, side: int) -> float:
        clipped = min(max(response.rewards[t], lower), upper)
        return beta * k * math.exp(mu * clipped if side == 1 else -mu * clipped)

    return _by_weight(chosen, rejected, weight)


def confpo(chosen: Response, rejected: Response, beta: float = 1.5, gamma: float = 1.6) -> Result:
    """Selected are the tokens below or at the mean probability of the response's scored tokens."""
    chosen_tokens = {}
    for response in (chosen, rejected):
        kept = _kept(response)
        mean = sum(math.exp(response.policy[t]) for t in kept) / len(kept)
        below = [t for t in kept if math.exp(response.policy[t]) <= mean]
        chosen_tokens[id(response)] = below or kept

    def weight(response: Response, t: int, side: int) -> float:
        mine = chosen_tokens[id(response)]
        return beta / len(mine) if t in mine else 0.0

    return _by_weight(chosen, rejected, weight, log_ratio=False, shift=-gamma)


def regularized(
    chosen: Response,
    rejected: Response,
    plain: Result,
    weight: float,
    alpha: float,
    beta: float,
    length_norm: bool = False,
) -> Result:
    """`plain` + alpha * weight * (R_w + R_l), R = -beta * sum of reward times log-prob (over |y| with length_norm)."""
    loss, gradients = plain[0], [list(plain[1]), list(plain[2])]
    for response, gradient in zip((chosen, rejected), gradients, strict=True):
        size = len(response.policy) if length_norm else 1
        for t in _kept(response):
            loss -= alpha * weight * beta * response.rewards[t] * response.policy[t] / size
            gradient[t] -= alpha * weight * beta * response.rewards[t] / size
    return loss, gradients[0], gradients[1]


def gradient_weight(chosen: Response, rejected: Response, beta: float, gamma: float | None = None) -> float:
    """sigmoid(r_l - r_w) with DPO's rewards, or with `gamma` sigmoid(r_l - r_w + gamma) with SimPO's."""
    rewards = []
    for response in (chosen, rejected):
        total = 0.0
        for t in _kept(response):
            total += response.policy[t] - (response.ref[t] if gamma is None else 0.0)
        rewards.append(beta * total / (1 if gamma is None else len(response.policy)))
    return sigmoid(rewards[1] - rewards[0] + (gamma or 0.0))


def dpo_sft(chosen: Response, rejected: Response, beta: float, alpha: float) -> Result:
    loss, by_chosen, by_rejected = dpo(chosen, rejected, beta)
    for t in _kept(chosen):
        loss -= alpha * chosen.policy[t]
        by_chosen[t] -= alpha
    return loss, by_chosen, by_rejected


def rrhf(
    responses: list[Response], scores: list[float], rank_weight: float = 1.0, sft_weight: float = 1.0
) -> tuple[float, list[list[float]]]:
    """The loss of one prompt's responses, and its derivative by each one's log-probs."""
    means = [sum(r.policy[t] for t in _kept(r)) / len(r.policy) for r in responses]
    loss, gradients = 0.0, [[0.0] * len(r.policy) for r in responses]
    for i, worse in enumerate(responses):
        for j, better in enumerate(responses):
            if scores[i] < scores[j] and means[i] > means[j]:
                loss += rank_weight * (means[i] - means[j])
                for t in _kept(worse):
                    gradients[i][t] += rank_weight / len(worse.policy)
                for t in _kept(better):
                    gradients[j][t] -= rank_weight / len(better.policy)
    best = scores.index(max(scores))
    for t in _kept(responses[best]):
        loss -= sft_weight * responses[best].policy[t]
        gradients[best][t] -= sft_weight
    return loss, gradients


def bradley_terry(chosen: float, rejected: float, margin: float = 0.0) -> tuple[float, float, float]:
    """The loss of two scores, and its derivative by each."""
    z = chosen - rejected - margin
    return minus_log_sigmoid(z), -sigmoid(-z), sigmoid(-z)


def log_softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    total = largest + math.log(sum(math.exp(x - largest) for x in logits))
    return [x - total for x in logits]


def tdpo_from_logits(
    policy: list[list[list[float]]],
    ref: list[list[list[float]]],
    targets: list[list[int]],
    beta: float,
    scale: float,
    chosen_divergence_pulls: bool,
) -> tuple[float, list[list[list[float]]]]:
    """TDPO of one pair, chosen first, from logits [response][token][vocabulary]; and its derivative by the policy's.

    `chosen_divergence_pulls`: TDPO1; else no derivative goes through the chosen response's divergence (TDPO2).
    """
    z = 0.0
    for response, side in ((0, 1), (1, -1)):
        for own, other, y in zip(policy[response], ref[response], targets[response], strict=True):
            log_p, log_q = log_softmax(own), log_softmax(other)
            kl = sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True))
            z += side * beta * (log_p[y] - log_q[y] + scale * kl)
    gradients: list[list[list[float]]] = [[], []]
    for response, side in ((0, 1), (1, -1)):
        pulls = scale if response == 1 or chosen_divergence_pulls else 0.0
        for own, other, y in zip(policy[response], ref[response], targets[response], strict=True):
            p, q = ([math.exp(x) for x in log_softmax(logits)] for logits in (own, other))
            by = [(1.0 if v == y else 0.0) - p[v] + pulls * (p[v] - q[v]) for v in range(len(p))]
            gradients[response].append([-sigmoid(-z) * side * beta * g for g in by])
    return minus_log_sigmoid(z), gradients
