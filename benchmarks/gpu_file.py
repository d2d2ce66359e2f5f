"""The file that `benchmarks/gpu.py` runs from: packed micro-batches of one step, safetensors, and the pairs themselves.

Writing needs the extension and Polars, reading NumPy alone. Keys are SET.LAYOUT.NUMBER.FIELD for the micro-batches and
`pairs.ids`, `pairs.offsets` for prompt, chosen, rejected, prompt, …; sets are `dpo` (every response token), `sepo` (a
random 30 % of them) and `check` (the first pairs in one micro-batch, the same order in both layouts).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyprefopt.types import PackedBatch

LAYOUTS = ("separate", "shared")
RATIO = 0.3  # of a response's tokens, set sepo
CHECKED = 4  # pairs of the set `check`


@dataclass(frozen=True)
class BatchFile:
    """What was read."""

    batches: dict[tuple[str, str], list[PackedBatch]]  # by set and layout; NumPy arrays
    pairs: list[list[list[int]]]  # prompt, chosen and rejected ids of each pair
    vocabulary: int
    about: dict[str, Any]


def write(path: Path, *, pairs: int, max_tokens: int, budget: int, embedded: bool) -> None:
    """The first `pairs` of real data, or of the embedded set, in micro-batches of `budget` tokens."""
    from safetensors.numpy import save_file

    from pyprefopt.data.batching.packing import Packer

    store, vocabulary, source = _store(pairs, max_tokens, embedded)
    arrays: dict[str, NDArray[Any]] = {}
    counts = {}
    for layout in LAYOUTS:
        whole = Packer(store, layout=layout)
        selected = Packer(store, layout=layout, selected=_random(store), chosen_ratio=RATIO, rejected_ratio=RATIO)
        groups = np.arange(store.num_rows)
        made = {
            "dpo": whole.pack(groups, max_tokens=budget),
            "sepo": selected.pack(groups, max_tokens=budget),
            "check": whole.assemble([groups[:CHECKED]]),
        }
        for name, batches in made.items():
            counts[f"{name}.{layout}"] = len(batches)
            for number, batch in enumerate(batches):
                for field in fields(batch):
                    if (value := getattr(batch, field.name)) is not None:
                        arrays[f"{name}.{layout}.{number}.{field.name}"] = np.ascontiguousarray(value)
    ids = [np.asarray(one.values, np.int64) for one in store.table["ids"].combine_chunks()]
    arrays["pairs.ids"] = np.concatenate(ids)
    arrays["pairs.offsets"] = np.cumsum([0, *map(len, ids)])
    about = {"source": source, "pairs": store.num_rows, "vocabulary": vocabulary, "budget": budget, "counts": counts}
    save_file(arrays, path, metadata={"about": json.dumps(about)})


def read(path: Path) -> BatchFile:
    """What `write` wrote."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["about"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    batches: dict[tuple[str, str], list[PackedBatch]] = {}
    for name, count in about["counts"].items():
        made = []
        for number in range(count):
            prefix = f"{name}.{number}."
            made.append(PackedBatch(**{k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}))
        kind, _, layout = name.partition(".")
        batches[kind, layout] = made
    offsets = arrays["pairs.offsets"]
    lists = [arrays["pairs.ids"][a:b].tolist() for a, b in pairwise(offsets)]
    return BatchFile(batches, [lists[k : k + 3] for k in range(0, len(lists), 3)], about["vocabulary"], about)


def _store(pairs: int, max_tokens: int, embedded: bool) -> tuple[Any, int, str]:
    """Segments, the vocabulary's size, where they come from."""
    import polars as pl

    from benchmarks.sets import SHARED, TOKENIZER
    from benchmarks.sides import EOS
    from pyprefopt.data import load_tokenizer, tokenize, write_toy
    from pyprefopt.data.store.segments import SegmentStore

    with tempfile.TemporaryDirectory() as folder:
        if embedded:
            paths = write_toy(folder, train=8 * (-(-pairs // 8)), test=8, sft=8)
            tokenizer, path, source = load_tokenizer(str(paths.tokenizer)), paths.train, "the embedded set"
        else:
            tokenizer = load_tokenizer(str(TOKENIZER), chat_template="plain", eos_token=EOS)
            path, source = SHARED / "data/alpaca-pairs-train.parquet", "AlpacaEval pairs, GPT-NeoX-20B's tokenizer"
        frame = tokenize(path, tokenizer, max_prompt_tokens=max_tokens // 2, max_tokens=max_tokens, on_error="skip")
    rows = frame["row"].unique().sort()
    if not embedded:  # neighbours are answers to one instruction
        rows = pl.Series(np.random.default_rng(0).permutation(rows.to_numpy()))
    store = SegmentStore.from_frame(frame.filter(pl.col("row").is_in(rows.head(pairs).implode())))
    return store, int(tokenizer.vocab_size), source


def _random(store: Any) -> NDArray[np.bool_]:
    """A random share of each response's tokens: no tail is spared more than chance gives."""
    random = np.random.default_rng(0)
    selected = np.zeros(int(store.response_offsets[-1]), np.bool_)
    for first, last in zip(store.response_offsets[:-1], store.response_offsets[1:], strict=True):
        count = max(1, int(RATIO * (last - first) + 0.5))
        selected[first + random.permutation(last - first)[:count]] = True
    return selected
