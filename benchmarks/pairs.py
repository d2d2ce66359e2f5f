"""Sets of tokenized pairs with the configuration of a model: what both sides of `benchmarks/train.py` are given."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data.store.segments import SegmentStore

Lists = list[NDArray[np.uint32]]
ALPACA = "data/alpaca-pairs-train.parquet"  # in the folder of real data


@dataclass(frozen=True)
class Shape:
    """A Llama model: everything of its size, the vocabulary included."""

    vocabulary: int = 32_000
    hidden: int = 256
    layers: int = 6

    def config(self) -> dict[str, Any]:
        """The content of a config.json: heads of 64, Llama's ratio of 8 / 3 between the two widths, an own head."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": 64 * math.ceil(self.hidden * 8 / 3 / 64),
            "num_hidden_layers": self.layers,
            "num_attention_heads": max(1, self.hidden // 64),
            "num_key_value_heads": max(1, self.hidden // 64),
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        }


@dataclass(frozen=True)
class Lengths:
    """Tokens: prompts uniform, responses log-normal with 95 % within `response`, cut at its ends."""

    prompt: tuple[int, int] = (64, 256)
    response: tuple[int, int] = (32, 512)


def synthetic(pairs: int, shape: Shape, lengths: Lengths, seed: int = 0) -> tuple[Lists, Lists, Lists]:
    """Prompts, chosen and rejected of random ids; 0 is left to padding."""
    random = np.random.default_rng(seed)
    low, high = (math.log(bound) for bound in lengths.response)
    drawn = np.exp(random.normal((low + high) / 2, (high - low) / 4, (2, pairs)))
    counts = [
        random.integers(lengths.prompt[0], lengths.prompt[1] + 1, pairs),
        *np.clip(np.rint(drawn), *lengths.response).astype(np.int64),
    ]
    chosen = [[random.integers(1, shape.vocabulary, n).astype(np.uint32) for n in kind] for kind in counts]
    return chosen[0], chosen[1], chosen[2]


def missing_text() -> str | None:
    """What `alpaca` lacks here; None: nothing."""
    from benchmarks.sets import SHARED, TOKENIZER

    if TOKENIZER.exists() and (SHARED / ALPACA).exists():
        return None
    return (
        f"it needs real data, {ALPACA} and {TOKENIZER.relative_to(SHARED)}, in the folder that the "
        "environment variable PYPREFOPT_SHARED names (../shared without it)"
    )


def alpaca(pairs: int, max_tokens: int, seed: int = 0) -> tuple[Lists, Lists, Lists]:
    """`pairs` of the AlpacaEval answers, drawn by `seed`, in GPT-NeoX-20B's ids; responses cut at `max_tokens`."""
    from benchmarks.sets import SHARED, TOKENIZER
    from benchmarks.sides import EOS
    from pyprefopt.data import load_tokenizer, tokenize

    tokenizer = load_tokenizer(str(TOKENIZER), chat_template="plain", eos_token=EOS)
    path = SHARED / ALPACA
    frame = tokenize(path, tokenizer, max_prompt_tokens=max_tokens // 2, max_tokens=max_tokens, on_error="skip")
    store = SegmentStore.from_frame(frame)
    ids, first = store.table["ids"], store.group_offsets
    rows = np.random.default_rng(seed).permutation(store.num_rows)[:pairs]
    return tuple([ids[int(first[row]) + k].values.to_numpy() for row in rows] for k in range(3))  # type: ignore[return-value]


def write(folder: Path, lists: tuple[Lists, Lists, Lists], shape: Shape) -> Path:
    """`config.json` and `segments` in `folder`, which is new."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    count = len(lists[0])
    ids = [one[row] for row in range(count) for one in lists]
    table = pa.table(
        {
            "row": pa.array(np.repeat(np.arange(count, dtype=np.uint64), 3)),
            "segment": pa.array(np.tile(np.arange(3, dtype=np.uint16), count)),
            "kind": pa.array(["prompt", "chosen", "rejected"] * count, pa.large_string()),
            "ids": pa.array(ids, pa.large_list(pa.uint32())),
            "mask": pa.array([np.full(len(one), k % 3 > 0) for k, one in enumerate(ids)], pa.large_list(pa.bool_())),
        }
    )
    SegmentStore.write(table, folder / "segments")
    return folder


def facts(folder: Path) -> dict[str, Any]:
    """Mean lengths, and the shape, for the page."""
    store = SegmentStore.open(folder / "segments")
    lengths = store.lengths.reshape(-1, 3)
    names = ("prompt", "chosen", "rejected")
    means = {f"mean_{name}": float(lengths[:, k].mean()) for k, name in enumerate(names)}
    return means | {"pairs": len(lengths), "tokens": int((lengths.sum(1) + lengths[:, 0]).sum())}


def described(shape: Shape, lengths: Lengths | None) -> dict[str, Any]:
    """What a set was made of, as JSON."""
    return asdict(shape) | ({} if lengths is None else asdict(lengths))
