"""What the engine leaves out, and what that saves: selection, dead tokens, weightless pairs, and the head by itself.

    OMP_NUM_THREADS=1 python benchmarks/engine.py

One process, one thread, all variants by turns; the best of the rounds, in seconds of CPU time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.losses import DPO, SePO
from pyprefopt.losses.method import Method
from pyprefopt.modeling import LogpsModel, load_model
from pyprefopt.modeling.head.outputs import Readout, token_outputs
from pyprefopt.modeling.head.transform import HeadTransform
from pyprefopt.training.step import method_sums
from pyprefopt.types import Outputs, PackedBatch

SHAPE = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048}


def make_pairs(count: int, vocabulary: int) -> pl.DataFrame:
    """Segments: prompts of 64 to 256 tokens, responses log-normal, 32 to 512."""
    rng = np.random.default_rng(0)
    lines = []
    for row in range(count):
        for number, kind in enumerate(("prompt", "chosen", "rejected")):
            length = int(rng.integers(64, 257)) if number == 0 else int(np.clip(rng.lognormal(5.0, 0.7), 32, 512))
            ids = rng.integers(0, vocabulary, length)
            lines.append((row, number, kind, ids, np.full(length, number > 0), None))
    row, segment, kind, ids, mask, score = zip(*lines, strict=True)
    return pl.DataFrame(
        {
            "row": pl.Series(row, dtype=pl.UInt64), "segment": pl.Series(segment, dtype=pl.UInt16), "kind": list(kind),
            "ids": pl.Series(ids, dtype=pl.List(pl.UInt32)), "mask": pl.Series(mask, dtype=pl.List(pl.Boolean)),
            "score": pl.Series(score, dtype=pl.Float32),
        }
    )  # fmt: skip


def make_packs(table: pl.DataFrame, layout: str, max_tokens: int) -> dict[str, tuple[Method, list[PackedBatch]]]:
    """By name of what is left out: the method and its micro-batches."""
    store, rng = SegmentStore.from_frame(table), np.random.default_rng(1)
    lengths = table["ids"].list.len().to_numpy()
    kinds, rows = table["kind"].to_numpy(), table["row"].to_numpy()
    values = [None if kind == "prompt" else np.zeros(n, np.float32) for kind, n in zip(kinds, lengths, strict=True)]
    zeros = pa.array(values, pa.list_(pa.float32()))

    def weights(rule: Callable[[int, int], np.ndarray]) -> pa.Array:
        made = [None if v is None else rule(int(r), len(v)) for v, r in zip(values, rows, strict=True)]
        return pa.array(made, pa.list_(pa.float32()))

    def selected(share: float) -> pa.Array:
        made = [None if v is None else rng.permutation(len(v)) < share * len(v) for v in values]
        return pa.array(made, pa.list_(pa.bool_()))

    half = weights(lambda _, n: (np.arange(n) < n / 2).astype(np.float32))
    some = weights(lambda row, n: np.full(n, row % 2, np.float32))
    thirty = {"selected": selected(0.3), "chosen_ratio": 0.3, "rejected_ratio": 0.3}
    options = {
        "nothing (dpo)": (DPO(), {"ref_logps": zeros}),
        "70 % not selected (sepo)": (SePO(), thirty),
        "half of each response without weight": (DPO(), {"ref_logps": zeros, "user_weights": half}),
        "  the same, computed": (DPO(), {"ref_logps": zeros, "user_weights": half, "keep_unweighted": True}),
        "half of the pairs without weight": (DPO(), {"ref_logps": zeros, "user_weights": some}),
        "  the same, computed ": (DPO(), {"ref_logps": zeros, "user_weights": some, "keep_unweighted": True}),
    }
    return {
        name: (method, [b.to() for b in Packer(store, layout=layout, **given).pack(max_tokens=max_tokens)])
        for name, (method, given) in options.items()
    }


def step(model: LogpsModel, method: Method, batches: list[PackedBatch]) -> None:
    """Gradients of all batches."""
    model.zero_grad(set_to_none=True)
    for batch in batches:
        sums = method_sums(method, batch, Outputs.of(model(batch)))
        method.loss(sums, batch).sum().backward()


def by_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the best of the rounds."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - began)
    return best


def head_runs(rows: int, hidden: int, vocabulary: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of the head alone: all logits at once, ours, with entropy, on 30 % of the rows."""
    torch.manual_seed(0)
    head, states = nn.Linear(hidden, vocabulary, bias=False), torch.randn(rows, hidden, requires_grad=True)
    targets, part = torch.randint(0, vocabulary, (rows,)), rows * 3 // 10

    def ours(count: int, *, entropy: bool = False) -> Tensor | None:
        readout = Readout(head, states[:count], HeadTransform())
        return token_outputs(readout, targets[:count], entropy=entropy).logps

    losses: dict[str, Callable[[], Tensor | None]] = {
        "all logits at once": lambda: F.cross_entropy(head(states), targets, reduction="none"),
        "vocabulary blocks": lambda: ours(rows),
        "vocabulary blocks, with entropy": lambda: ours(rows, entropy=True),
        "vocabulary blocks, 30 % of the rows": lambda: ours(part),
    }

    def run(loss: Callable[[], Tensor | None]) -> None:
        head.weight.grad = states.grad = None
        values = loss()
        assert values is not None
        values.sum().backward()

    return {name: lambda loss=loss: run(loss) for name, loss in losses.items()}  # type: ignore[misc]


def main() -> None:
    """Measure and print; `--json FILE` also writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("pairs", 16), ("vocabulary", 32_000), ("hidden", 256), ("layers", 6), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--max_tokens", type=int, default=4096)
    parser.add_argument("--layout", choices=("shared", "separate"), default="shared")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"vocab_size": given.vocabulary, "hidden_size": given.hidden, "intermediate_size": 3 * given.hidden}
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.json"
        config.write_text(json.dumps(SHAPE | sizes | {"num_hidden_layers": given.layers}))
        model = LogpsModel(load_model(config))
    packs = make_packs(make_pairs(given.pairs, given.vocabulary), given.layout, given.max_tokens)
    steps = by_turns(
        {name: lambda m=m, b=b: step(model, m, b) for name, (m, b) in packs.items()},
        given.rounds,  # type: ignore[misc]
    )
    full = steps["nothing (dpo)"]
    print(f"{'left out of a step':40} {'tokens':>8} {'scored':>8} {'CPU s':>8} {'of dpo':>8}")
    for name, seconds in steps.items():
        tokens, scored = (sum(len(getattr(b, f)) for b in packs[name][1]) for f in ("input_ids", "target_ids"))
        print(f"{name:40} {tokens:8,} {scored:8,} {seconds:8.2f} {seconds / full:8.2f}")
    heads = by_turns(head_runs(2048, given.hidden, given.vocabulary), given.rounds)
    print(f"\n{'the head, 2048 rows':40} {'CPU s':>8}")
    for name, seconds in heads.items():
        print(f"{name:40} {seconds:8.2f}")
    if given.json:
        given.json.write_text(json.dumps({"steps": steps, "head": heads}, indent=2) + "\n")


if __name__ == "__main__":
    main()
