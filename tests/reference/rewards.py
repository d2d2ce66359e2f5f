"""Slow twins of the token rewards: float64, one token at a time, written from the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence


def sigmoid_centered(value: float) -> float:
    """sigma(value) - 1/2."""
    return 1 / (1 + math.exp(-value)) - 0.5


def log_ratio(beta: float, upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """dpo, simpo (form log_ratio), strong_weak."""
    return [beta * (a - b) for a, b in zip(upper, lower, strict=True)]


def length_norm(beta: float, logps: Sequence[float], mask: Sequence[bool]) -> list[float]:
    """simpo, form length_norm: |y| counts the response's own tokens."""
    return [beta * logp / sum(mask) for logp in logps]


def contrastive(
    beta: float, better: Sequence[float], worse: Sequence[float], template: Sequence[bool], *, score_eos: bool
) -> list[float]:
    """T-REG, Eq. 3; the template's tokens get 0."""
    return [
        0.0 if written and not score_eos else sigmoid_centered(beta * (b - w))
        for b, w, written in zip(better, worse, template, strict=True)
    ]


def forced_logps(model, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
    """log p of each forced token, from the whole logits, one forward a token."""
    import torch

    found = []
    for place, token in enumerate(response):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response[:place]]])).logits[0, -1].double()
        found.append(float(torch.log_softmax(logits, 0)[token]))
    return found
