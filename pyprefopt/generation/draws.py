"""Random numbers of generation: one stream for each (seed, prompt, sample), whatever the batch and the order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TOKENS, _KL = 0, 1  # what a stream is for


def token_draws(seed: int, prompt: int, sample: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that decide the tokens of one sample, one a token, from the first on.

    Args:
        seed: of the call, in [0, 2^64).
        prompt: the row of the prompt.
        sample: its number among the prompt's samples.
        count: how many; a longer stream begins with a shorter one.

    Returns:
        [count].

    Example:
        >>> token_draws(0, 5, 1, 4)[:2].tolist() == token_draws(0, 5, 1, 2).tolist()
        True
    """
    return _stream(seed, _TOKENS, prompt, sample).random(count)


def kl_draws(seed: int, prompt: int, sample: int, step: int, count: int) -> NDArray[np.float64]:
    """The same for the tokens of one Monte Carlo estimate, that of a step; [count]."""
    return _stream(seed, _KL + step, prompt, sample).random(count)


def _stream(seed: int, use: int, prompt: int, sample: int) -> np.random.Generator:
    """Philox counts in the first word of its counter; the others tell the streams apart."""
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, use, prompt, sample]))
