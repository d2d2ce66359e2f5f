"""Speed of selection and packing: `RAYON_NUM_THREADS=1 python benchmarks/kernels.py [OUT.json]` (a release build)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pyprefopt.data.pack import Packer
from pyprefopt.data.select import top_k_mask
from pyprefopt.data.store import SegmentStore


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def pairs(count: int, seed: int = 0) -> SegmentStore:
    """Pairs of 20 to 400 tokens a segment."""
    rng = np.random.default_rng(seed)
    lines = 3 * count
    offsets = np.concatenate([[0], np.cumsum(rng.integers(20, 400, lines))])
    tokens = int(offsets[-1])
    columns = {
        "row": pa.array(np.repeat(np.arange(count, dtype=np.uint64), 3)),
        "segment": pa.array(np.tile(np.arange(3, dtype=np.uint16), count)),
        "kind": pa.array(["prompt", "chosen", "rejected"] * count),
        "ids": pa.LargeListArray.from_arrays(offsets, pa.array(rng.integers(0, 32000, tokens).astype(np.uint32))),
        "mask": pa.LargeListArray.from_arrays(offsets, pa.array(np.ones(tokens, np.bool_))),
        "scores": pa.LargeListArray.from_arrays(offsets, pa.array(rng.normal(size=tokens).astype(np.float32))),
    }
    return SegmentStore.from_frame(pa.table(columns))


def main() -> None:
    segments = pairs(10_000)
    tokens, scores, mask = int(segments.lengths.sum()), segments.table["scores"], segments.table["mask"]
    packer = Packer(segments)
    bins = packer.plan(max_tokens=16384)
    results = {
        "top_k_mask, M tokens/s": tokens / best(lambda: top_k_mask(scores, 0.3)) / 1e6,
        "top_k_mask with mask, M tokens/s": tokens / best(lambda: top_k_mask(scores, 0.3, mask=mask)) / 1e6,
        "plan, M groups/s": segments.num_rows / best(lambda: packer.plan(max_tokens=16384)) / 1e6,
        "assemble, M tokens/s": int(packer.lengths().sum()) / best(lambda: packer.assemble(bins)) / 1e6,
    }
    for name, value in results.items():
        print(f"{name:36} {value:8.1f}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
