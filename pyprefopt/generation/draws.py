"""Random numbers of generation: one stream for each (seed, prompt, sample), wherever the prompt stands."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_TOKENS, _KL = 0, 1  # what a stream is for


def prompt_number(ids: Sequence[int]) -> int:
    """The number of a prompt by its tokens, in [0, 2^64).

    Example:
        >>> prompt_number([1, 2]) == prompt_number((1, 2)) != prompt_number([2, 1])
        True
    """
    return int.from_bytes(blake2b(np.asarray(ids, "<u4").tobytes(), digest_size=8).digest(), "little")


def token_draws(seed: int, prompt: int, sample: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that decide the tokens of one sample, one a token, from the first on.

    Args:
        seed: of the call, in [0, 2^64).
        prompt: the prompt's number, in [0, 2^64).
        sample: the sample's number among those of the prompt, in [0, 2^64).
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


def stream_seed(seed: int, prompt: int, sample: int) -> int:
    """One number of a stream, in [0, 2^63), for a program that draws by itself."""
    return int(_stream(seed, _TOKENS, prompt, sample).integers(0, 2**63))


def _stream(seed: int, use: int, prompt: int, sample: int) -> np.random.Generator:
    """Philox counts in the first word of its counter; the others tell the streams apart."""
    return np.random.Generator(np.random.Philox(key=_words(seed, 0), counter=_words(0, use, prompt, sample)))


def _words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)  # of a list NumPy would make floats
