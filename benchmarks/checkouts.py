"""Two checkouts side by side: is the second as fast as the first?

    python benchmarks/checkouts.py ../before . --rounds 5

Each checkout has its extension built. By turns, in a process of its own, each does the same work through public names;
the least processor time of each counts, which other programs on the machine disturb least. Results must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SHARED = Path(os.environ.get("PYPREFOPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
REPEATED = 5  # times that a work is done in a process; the first is a warm-up
STEPS = 202  # of a training
COPIES = 10  # of the 1,500 pairs
WORK = ("tokenize", "prepare", "truncate", "select", "pack", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WORK, default=WORK)
    options = parser.parse_args()
    print("| work | before, CPU s | after, CPU s | after / before | result |\n| --- | --- | --- | --- | --- |")
    for name in options.only:
        sides: list[list[dict[str, Any]]] = [[], []]
        for _ in range(options.rounds):
            for side, checkout in zip(sides, (options.before, options.after), strict=True):
                side.append(run(checkout.resolve(), name))
        old, new = (min(result["seconds"] for result in side) for side in sides)
        same = "equal" if len({result["digest"] for side in sides for result in side}) == 1 else "DIFFERENT"
        print(f"| {name} | {old:.3f} | {new:.3f} | {new / old:.3f} | {same} |", flush=True)


def run(checkout: Path, name: str) -> dict[str, Any]:
    """One work in a new process of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", name]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{checkout}, {name}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def worker(name: str) -> None:
    """Do one work `REPEATED` times; print the least processor time and a hash of the result."""
    with TemporaryDirectory() as folder:
        seconds, result = zip(*(train(Path(folder)) if name == "train" else kernels(name, Path(folder))), strict=True)
    print(json.dumps({"seconds": min(seconds), "digest": hashlib.sha256(repr(result[-1]).encode()).hexdigest()}))


def kernels(name: str, folder: Path) -> Iterator[tuple[float, Any]]:
    from pyprefopt import data

    pairs = data.read_preferences(str(SHARED / "data" / "hh-rlhf-harmless.jsonl.gz"), on_error="skip")
    source = folder / "pairs.jsonl"
    source.write_text(COPIES * pairs.select("row", "prompt", "chosen", "rejected").write_ndjson())
    file = SHARED / "data" / "tokenizers" / "gpt-neox-20b.json"
    tokenizer = data.load_tokenizer(str(file), eos_token="<|endoftext|>", chat_template="plain")  # noqa: S106
    segments = data.tokenize(str(source), tokenizer, max_prompt_tokens=1024, max_tokens=2048, on_error="skip")
    scores = segments["ids"].cast(_floats())

    def prepare() -> Any:
        done = data.prepare(str(source), tokenizer, folder / "out", on_error="skip", overwrite=True)
        return done.fingerprint

    works: dict[str, Callable[[], Any]] = {
        "tokenize": lambda: data.tokenize(str(source), tokenizer, max_tokens=2048, on_error="skip").hash_rows().sum(),
        "prepare": prepare,
        "truncate": lambda: data.truncate(segments, ratio=0.5).hash_rows().sum(),
        "select": lambda: data.top_k_mask(scores, 0.3).list.sum().sum(),
        "pack": lambda: sum(len(batch.input_ids) for batch in data.pack(segments, max_tokens=16384)),
    }
    for _ in range(REPEATED):
        if name == "prepare":
            _remove(folder / "out")
        began = time.process_time()
        result = works[name]()
        yield time.process_time() - began, result


def _floats() -> Any:
    import polars as pl

    return pl.List(pl.Float32)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def train(folder: Path) -> Iterator[tuple[float, Any]]:
    """Processor time of an optimizer step of DPO on the embedded set: of a run of many steps, less that of a few."""
    import pyprefopt

    times, losses = [], []
    for count, steps in enumerate((2, 2, STEPS)):  # the first is a warm-up
        config = pyprefopt.configure(
            method="dpo", output_dir=str(folder / str(count)), base={"max_steps": 1}, max_steps=steps,
            threads=1, save_steps=0,
        )  # fmt: skip
        began = time.process_time()
        pyprefopt.train(config)
        times.append(time.process_time() - began)
        lines = (folder / str(count) / "metrics.jsonl").read_text().splitlines()
        losses.append([line["loss"] for line in map(json.loads, lines) if "loss" in line])
    yield (times[2] - times[1]) / (STEPS - 2), losses


if __name__ == "__main__":
    if "--worker" in sys.argv:
        worker(sys.argv[-1])
    else:
        main()
