"""A training step against TRL's, on the same model, pairs and batches: `python benchmarks/train.py`.

Peer and we run by turns, each in its own process; of each step the fastest run counts, and the first step does not. No
ratio is given unless the losses of all steps agree. With `--write docs/training-speed.md` the results become a page.
The table `text` needs real data, `data/` in the folder that PYPREFOPT_SHARED names; without it that table is left out.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("/benchmarks/")[0] or ".."  # the repository, not this folder

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks import pairs, report, training_report  # noqa: E402
from benchmarks.pairs import Lengths, Shape  # noqa: E402
from benchmarks.workers import CORES, Result, worker  # noqa: E402

PAIRS = 512
VOCABULARIES = (32_000, 64_000, 128_000, 256_000)
RESPONSES = (64, 128, 256, 512, 896)  # two of the longest and a prompt of 128 fill 2,048 tokens
RATIOS = (1.0, 0.7, 0.5, 0.3, 0.1)
Sides = dict[str, list[object]]
PEERS: Sides = {"trl 4": ["trl", "--micro", 4], "trl 1": ["trl", "--micro", 1]}
OURS: Sides = {
    "separate": ["ours", "--layout", "separate"],
    "shared": ["ours"],
    "sepo": ["ours", "--ratio", 0.3],
}
TABLES = ("small", "heavy", "heavy-bf16", "text", "vocabulary", "response", "ratio")
BRIEF = ("trl 4", "shared")  # sides of a quick run's further tables


def case(name: str, folder: Path, sides: Sides, given: argparse.Namespace, **about: Any) -> Result:
    """All sides on one set, by turns: per step the fastest run, the losses of the first, the largest peaks."""
    runs: dict[str, list[Result]] = {side: [] for side in sides}
    options = ["--steps", given.steps, "--batch", given.batch, "--threads", given.threads]
    options += ["--max_tokens", given.max_tokens]

    def measure(side: str) -> None:
        command = sides[side]
        found = worker("benchmarks.trainers", command[0], folder, *command[1:], *options, threads=given.threads)
        runs[side].append(found)
        pace = given.batch * (given.steps - 1) / sum(found[given.clock][1:])
        print(f"  {name} {about.get('value', '')} {side}: {pace:.2f} pairs/s", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(CORES if given.quick else 1) as pool:  # a quick run measures nothing: two at a time
        list(pool.map(measure, list(sides) * given.repetitions))
    whole = {side: together(found, given.clock, given.batch) for side, found in runs.items()}
    return {"table": name, "sides": whole} | pairs.facts(folder) | about


def together(runs: list[Result], clock: str, batch: int) -> Result:
    """One side's repetitions as one result."""
    steps = [min(values) for values in zip(*(run[clock] for run in runs), strict=True)][1:]
    merged = {
        "pairs_per_second": batch * len(steps) / sum(steps),
        "losses": runs[0]["losses"],
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "before_bytes": max(run["before_bytes"] for run in runs),
        "parameters": runs[0]["parameters"],
    }
    if f"scoring_{clock}" in runs[0]:
        merged["scoring_seconds"] = min(run[f"scoring_{clock}"] for run in runs)
        merged["scoring_peak_bytes"] = max(run["scoring_peak_bytes"] for run in runs)
    return merged


def synthetic(folder: Path, given: argparse.Namespace, shape: Shape, lengths: Lengths, seed: int = 0) -> Path:
    """The first steps of 512 random pairs."""
    lists = pairs.synthetic(max(PAIRS, given.steps * given.batch), shape, lengths, seed)
    count = given.steps * given.batch
    return pairs.write(folder, (lists[0][:count], lists[1][:count], lists[2][:count]), shape)


def run(given: argparse.Namespace, folder: Path) -> Iterator[Result]:
    """The tables that were asked for, as they are made."""
    small = Shape(512, 64, 2) if given.quick else Shape()
    heavy = Shape(512, 128, 2) if given.quick else Shape(8_000, 512, 8)
    lengths = Lengths((8, 16), (8, 32)) if given.quick else Lengths()
    everything = PEERS | OURS
    if "small" in given.only:
        yield case("small", synthetic(folder / "small", given, small, lengths), everything, given, **vars(small))
    if given.quick:
        everything = {side: everything[side] for side in BRIEF}
    if "heavy" in given.only:
        yield case("heavy", synthetic(folder / "heavy", given, heavy, lengths), everything, given, **vars(heavy))
    if "heavy-bf16" in given.only:
        peers = {name: [*command, "--autocast"] for name, command in PEERS.items()}
        mine = {name: [*command, "--dtype", "bfloat16"] for name, command in OURS.items()}
        path = synthetic(folder / "bf16", given, heavy, lengths)
        sides = {side: (peers | mine)[side] for side in everything}
        yield case("heavy-bf16", path, sides, given, **vars(heavy))
    if "text" in given.only:
        shape = replace(small, vocabulary=50_432)
        path = pairs.write(folder / "text", pairs.alpaca(given.steps * given.batch, 64 if given.quick else 1024), shape)
        yield case("text", path, everything, given, **vars(shape))
    yield from scaling(given, folder, small, lengths)


def scaling(given: argparse.Namespace, folder: Path, small: Shape, lengths: Lengths) -> Iterator[Result]:
    """Our step by one property at a time."""
    ours = {"shared": OURS["shared"]}
    for vocabulary in VOCABULARIES[: 1 if given.quick else None] if "vocabulary" in given.only else ():
        shape = small if given.quick else replace(small, vocabulary=vocabulary)
        path = synthetic(folder / f"vocabulary-{vocabulary}", given, shape, lengths)
        yield case("vocabulary", path, ours, given, value=shape.vocabulary, **vars(shape))
        shutil.rmtree(path)
    for response in RESPONSES[: 1 if given.quick else None] if "response" in given.only else ():
        fixed = Lengths((128, 128), (response, response))
        path = synthetic(folder / f"response-{response}", given, small, fixed)
        yield case("response", path, ours, given, value=response, **vars(small))
    if "ratio" in given.only:
        path = synthetic(folder / "ratio", given, small, lengths)
        for ratio in (0.3,) if given.quick else RATIOS:
            yield case("ratio", path, {"sepo": ["ours", "--ratio", ratio]}, given, value=ratio, **vars(small))


def left_out(given: argparse.Namespace) -> dict[str, str]:
    """Tables that nobody asked for by name and that are not made, with the reason."""
    reasons = {}
    if missing := pairs.missing_text():
        reasons["text"] = missing
    if given.quick:
        reasons["heavy"] = "at toy size it is the main setting again"
    return reasons


def keep(found: dict[str, Any], given: argparse.Namespace) -> None:
    """Write what there is so far."""
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.write:
        given.write.write_text(training_report.page(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--write", type=Path, help="write the results as a page, such as docs/training-speed.md")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="JSON of earlier runs, whose tables come first")
    parser.add_argument("--only", nargs="*", choices=TABLES, help="some of the tables, or none; all")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each run; the first is not counted")
    parser.add_argument("--batch", type=int, default=16, help="pairs of an optimizer step")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--max_tokens", type=int, default=2048, help="tokens of our micro-batches")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, a minute or two: shows that all runs, measures nothing"
    )
    given = parser.parse_args()
    if "text" in (given.only or ()) and (missing := pairs.missing_text()):
        parser.error(f"--only text: {missing}")
    reasons = left_out(given) if given.only is None else {}
    for name, reason in reasons.items():
        print(f"the table {name!r} is left out: {reason}", file=sys.stderr, flush=True)
    if given.only is None:
        given.only = [name for name in TABLES if name not in reasons]
    if given.quick:
        given.steps, given.batch, given.repetitions = 2, 4, 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    measured = {
        name: getattr(given, name)
        for name in ("steps", "batch", "repetitions", "threads", "clock", "max_tokens", "quick")
    }
    found: dict[str, Any] = {"machine": report.machine(CORES), "runs": [], "left_out": reasons}
    for path in given.add:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        found["runs"] += earlier["runs"]
        if not given.only:  # nothing is measured here
            found["machine"] = earlier["machine"]
    with tempfile.TemporaryDirectory() as folder:
        for one in run(given, Path(folder)):
            found["runs"].append(one | {"measured": measured})
            keep(found, given)
    keep(found, given)
    print(training_report.tables(found["runs"]))


if __name__ == "__main__":
    main()
