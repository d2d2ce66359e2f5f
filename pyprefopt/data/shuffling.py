"""Orders that a seed decides, the same on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=2)  # every step of an epoch asks again
def permutation(count: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `count` groups in an epoch, [count] i64.

    The stable argsort of the first `count` raw 64-bit outputs of Philox4x64-10 with key (seed, epoch) and counter 0.
    A bit generator's raw stream is fixed by its algorithm, unlike what `Generator.permutation` makes of it, so the
    order is the same on every machine and for every version of NumPy.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order = np.argsort(raw, kind="stable")
    order.setflags(write=False)
    return order
