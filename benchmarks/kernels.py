"""One kernel against its peer in one process: `python -m benchmarks.kernels {mask,packing,tokenize,first} SIZE`.

The two take turns; each says its fastest run. The last line is JSON; nothing is said unless the results are equal.
`RAYON_NUM_THREADS` sets our threads, and those of `tokenizers`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.sets import TOKENIZER, write_set
from benchmarks.sides import load

CAPACITY = 4096  # tokens a bin


def turns(peer: Callable[[], Any], ours: Callable[[], Any], repetitions: int) -> tuple[dict[str, float], Any, Any]:
    """Seconds of the fastest run of each, taken by turns, and what the last runs gave."""
    times: dict[str, list[float]] = {"peer_seconds": [], "our_seconds": []}
    results: list[Any] = [None, None]
    for _ in range(repetitions):
        for at, (name, function) in enumerate(zip(times, (peer, ours), strict=True)):
            start = time.perf_counter()
            results[at] = function()
            times[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in times.items()}, *results


def mask(size: int, repetitions: int, _: Path) -> dict[str, Any]:
    """The highest 30 % of each list, `size` scores in lists of 20 to 400; no two scores are equal."""
    from pyprefopt.data import top_k_mask

    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 400, size // 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    scores = rng.permutation(int(offsets[-1])).astype(np.float32)  # below 2^24: all different
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(scores))

    def numpy_loop() -> np.ndarray:
        chosen = np.zeros(len(scores), np.bool_)
        for start, end in pairwise(offsets):
            k = max(1, int(0.3 * (end - start) + 0.5))
            chosen[start + np.argpartition(-scores[start:end], k - 1)[:k]] = True
        return chosen

    times, theirs, ours = turns(numpy_loop, lambda: top_k_mask(column, 0.3), repetitions)
    flat = pa.chunked_array(ours).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(flat, theirs)
    return times | {"items": len(scores), "unit": "scores"}


def packing(size: int, repetitions: int, _: Path) -> dict[str, Any]:
    """`size` log-normal lengths (median 245, mean 367, at most one bin of 4096) against TRL's packer.

    TRL's packer also moves tokens; its lists are of Arrow's null type here, so that there are none to move.
    """
    from trl.data_utils import _pack_bfd

    from pyprefopt.data import pack_lengths

    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, size).astype(np.int64) + 1, 1, CAPACITY)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    table = pa.table({"ids": pa.LargeListArray.from_arrays(pa.array(offsets), pa.nulls(int(offsets[-1])))})
    times, theirs, ours = turns(
        lambda: _pack_bfd(table, CAPACITY), lambda: pack_lengths(lengths, CAPACITY), repetitions
    )
    np.testing.assert_array_equal(np.sort(ours.items), np.arange(size))
    assert np.add.reduceat(lengths[ours.items], ours.offsets[:-1]).max() <= CAPACITY
    bound = -(-int(lengths.sum()) // CAPACITY)
    assert bound <= len(ours) <= len(theirs), "more bins than TRL"
    return times | {"items": size, "unit": "lengths", "bins": len(ours), "peer_bins": len(theirs), "lower_bound": bound}


def _texts(size: int, folder: Path) -> pl.Series:
    """About `size` bytes of answers, from as many pairs as they need."""
    pairs = max(20, size // 4000)
    frame = pl.read_ndjson(write_set(folder / f"long-{pairs}.jsonl", "long", pairs))
    texts = pl.concat([frame[side].list.last().struct.field("content") for side in ("chosen", "rejected")])
    return texts.filter(texts.str.len_bytes().cum_sum() <= size)


def tokenize(size: int, repetitions: int, folder: Path) -> dict[str, Any]:
    """`size` bytes of answers, again and again: ids against `tokenizers`' `encode_batch_fast`."""
    import tokenizers

    texts, reference, own = _texts(size, folder), tokenizers.Tokenizer.from_file(str(TOKENIZER)), load()
    rows = texts.to_list()
    times, theirs, ours = turns(
        lambda: reference.encode_batch_fast(rows, add_special_tokens=False), lambda: own.encode(texts), repetitions
    )
    flat = ours.explode().to_numpy()
    np.testing.assert_array_equal(flat, np.concatenate([one.ids for one in theirs]))
    np.testing.assert_array_equal(ours.list.len().to_numpy(), [len(one) for one in theirs])
    return times | {"items": int(texts.str.len_bytes().sum()), "unit": "bytes"}


def first(size: int, _: int, folder: Path) -> dict[str, Any]:
    """The same for text that is seen for the first time by a tokenizer that has just been loaded: one run each."""
    return tokenize(size, 1, folder)


KERNELS = {"mask": mask, "packing": packing, "tokenize": tokenize, "first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("size", type=int)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.sets"))
    given = parser.parse_args()
    print(json.dumps(KERNELS[given.kernel](given.size, given.repetitions, given.folder)))


if __name__ == "__main__":
    main()
