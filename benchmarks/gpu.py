"""The engine on a GPU: checked against float64, timed, TRL beside it. `python benchmarks/gpu.py --batch FILE`.

Needs PyTorch, transformers and safetensors, and neither Rust, Polars nor DeepSpeed: the packed micro-batches come from
a file, which `--write-batch FILE` makes where the package is built, from real data (in the folder that
PYPREFOPT_SHARED names) or, with `--embedded`, from the embedded set. What is checked: log-probs and gradients of small
models against float64, each way of attention, both layouts; the first DPO loss. What is timed: steps of DPO and of SePO
on 30 % of the tokens for a Llama of about a billion random weights in bfloat16 (weights, gradients and moments), AdamW,
with and without activation checkpointing. `--quick --device cpu` does all of it at toy size. Exit code 1: a row says
"failed", TRL's included.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[0] = __file__.rpartition("/benchmarks/")[0] or ".."  # the repository, not this folder

import argparse
import datetime
import gc
import json
import logging
import platform
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import gpu_file

Row = dict[str, Any]
CHECKS = ("model", "dtype", "layout", "attention", "kernel", "logps_mean", "logps_max", "gradient", "verdict", "reason")
STEPS = (
    "method", "layout", "checkpointing", "attention", "kernel", "seconds", "pairs_per_second", "tokens_per_second",
    "useful_tokens_per_second", "mfu", "memory_gib", "verdict", "reason",
)  # fmt: skip
TRL = ("micro", "checkpointing", "seconds", "pairs_per_second", "memory_gib", "verdict", "reason")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write-batch", type=Path, metavar="FILE", help="make the batch file and stop")
    parser.add_argument(
        "--embedded", action="store_true", help="with --write-batch: the embedded set, toy size, no data"
    )
    parser.add_argument("--pairs", type=int, default=64, help="with --write-batch: pairs of a step; 64")
    parser.add_argument("--batch", type=Path, metavar="FILE", help="what --write-batch made")
    parser.add_argument("--device", default="cuda", help="cuda or cpu; cuda")
    parser.add_argument("--quick", action="store_true", help="toy models, one step each")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each kind, the median counts; 5")
    parser.add_argument("--only", choices=["checks", "steps", "trl"], nargs="+", default=["checks", "steps", "trl"])
    parser.add_argument("--out", type=Path, help="write all rows as JSON")
    given = parser.parse_args()
    if given.write_batch:
        write(given.write_batch, given.pairs, embedded=given.embedded)
        return 0
    if given.batch is None and not given.quick:
        parser.error("--batch FILE is needed; make it with --write-batch FILE where pyprefopt is built")
    if given.batch is not None and not given.batch.is_file():
        parser.error(f"--batch: no file {given.batch}; make it with --write-batch FILE where pyprefopt is built")
    with tempfile.TemporaryDirectory() as folder:
        if given.batch is None:
            given.batch = Path(folder) / "batch.safetensors"
            write(given.batch, 8, embedded=True)
        return run(given)


def write(path: Path, pairs: int, *, embedded: bool) -> None:
    from benchmarks.pairs import missing_text

    if not embedded and (missing := missing_text()):
        raise SystemExit(f"--write-batch: {missing}; set it, or give --embedded, which needs no data (toy size)")
    sizes = {"max_tokens": 128, "budget": 512} if embedded else {"max_tokens": 2048, "budget": 16_384}
    gpu_file.write(path, pairs=pairs, embedded=embedded, **sizes)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def run(given: argparse.Namespace) -> int:
    import torch

    from benchmarks import gpu_checks, gpu_steps
    from pyprefopt.training.throughput import known_peak

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is there; --device cpu --quick runs everything at toy size")
    device, steps = torch.device(given.device), 1 if given.quick else given.steps
    file = gpu_file.read(given.batch)
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    measured = gpu_steps.matmul_tflops(device, 256 if given.quick else 8192)
    sheet = known_peak(card, "bfloat16") if device.type == "cuda" else None
    found: dict[str, Any] = {"machine": _machine(card), "batch": file.about, "matmul_tflops": measured, "peak": sheet}
    print(f"{found['machine']}\n{file.about}")
    peak = f"{sheet:g} TFLOP/s of its data sheet" if sheet else "what the matrix product reaches"
    print(f"a matrix product reaches {measured:.3g} TFLOP/s; MFU counts useful tokens, against {peak}\n")
    if "checks" in given.only:
        found["checks"] = _table(CHECKS, gpu_checks.check(file, device, quick=given.quick))
    if "steps" in given.only:
        bench = gpu_steps.Bench(file, device, quick=given.quick, steps=steps, peak=sheet or measured)
        print(
            f"a Llama of {bench.weights / 1e9:.3g} billion weights in {bench.dtype}, {file.about['pairs']} pairs a step"
        )
        found["weights"] = bench.weights
        found["first_loss"] = _table(("layout", "off_ln_2", "verdict"), bench.add_reference())
        found["steps"] = _table(_shown(STEPS, device.type), bench.all())
        del bench
        gc.collect()
    if "trl" in given.only and (lack := gpu_steps.trl_missing()):
        print(f"no step of TRL: {lack}")
    elif "trl" in given.only:
        micros = [(micro, on) for micro in (4, 1) for on in (False, True)]
        rows = (
            gpu_steps.trl(file, device, quick=given.quick, steps=steps, micro=m, checkpointing=c) for m, c in micros
        )
        found["trl"] = _table(_shown(TRL, device.type), rows)
        print(_beside(found))
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    parts = ("checks", "first_loss", "steps", "trl")
    failed = {part: sum(row["verdict"] == "failed" for row in found.get(part, [])) for part in parts}
    told = ", ".join(f"{count} of {part}" for part, count in failed.items() if count)
    print(f"failed rows: {told}" if told else "every check passed")
    return 1 if told else 0


def _shown(columns: tuple[str, ...], device: str) -> tuple[str, ...]:
    """Without memory where nobody counts it."""
    return columns if device == "cuda" else tuple(name for name in columns if name != "memory_gib")


def _beside(found: dict[str, Any]) -> str:
    """Our DPO step with the shared layout against TRL's best, each in the form that suits it."""
    ours = [
        r for r in found.get("steps", []) if (r["method"], r["layout"], r["attention"]) == ("dpo", "shared", "auto")
    ]
    sides = [[r for r in rows if r["verdict"] == "ok"] for rows in (ours, found["trl"])]
    if not all(sides):
        return "no step of ours or of TRL's to compare"
    we, they = (max(rows, key=lambda row: row["pairs_per_second"]) for rows in sides)
    times = we["pairs_per_second"] / they["pairs_per_second"]
    parts = [
        f"{times:.2f} times TRL's best pairs/s ({we['pairs_per_second']:.3g} against {they['pairs_per_second']:.3g})",
        f"MFU {we['mfu']:.3g} against TRL's {we['mfu'] / times:.3g}",  # the useful work of a pair is the same
    ]
    if "memory_gib" in we:
        share = we["memory_gib"] / they["memory_gib"]
        parts.append(f"{we['memory_gib']:.3g} GiB against TRL's {they['memory_gib']:.3g} ({share:.2f} of it)")
    return f"DPO, shared layout: {', '.join(parts)}\n"


def _machine(card: str) -> dict[str, str]:
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"date": datetime.date.today().isoformat(), "card": card, "python": platform.python_version(), **versions}


def _table(columns: tuple[str, ...], rows: Any) -> list[Row]:
    """Print rows as they come, as Markdown; all of them."""
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    kept = []
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        shown = (
            f"{x:.3g}" if isinstance(x, float) and x < 1000 else f"{x:,.0f}" if isinstance(x, float) else str(x)
            for x in cells
        )
        print(f"| {' | '.join(shown)} |", flush=True)
        kept.append(row)
    print()
    return kept


if __name__ == "__main__":
    logging.getLogger("pyprefopt.modeling.checkpoints.load").setLevel(logging.ERROR)  # weights are random, we know
    for chooser in ("attention.backends", "head.choice"):  # they log what they choose, and why
        logging.getLogger(f"pyprefopt.modeling.{chooser}").setLevel(logging.INFO)
    sys.exit(main())
