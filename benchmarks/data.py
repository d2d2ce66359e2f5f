"""The data path against its peers, on the same data in one run: `python benchmarks/data.py [--write docs/speed.md]`.

Every comparison runs by turns (peer, we, peer, we), each side in its own process where its memory, caches or imports
matter; the fastest run counts. No ratio is given unless ids, masks and splits are equal. Needs a release build, the
`bench` extra and the real data that CONTRIBUTING names; the sets are made from it once, in benchmarks/.sets.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("/benchmarks/")[0] or ".."  # the repository, not this folder

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks import compare, report, sets  # noqa: E402
from benchmarks.workers import CORES, ROOT, Result, worker  # noqa: E402


def preparation(path: Path, sides: list[str], pairs: int, repetitions: int) -> list[Result]:
    """Whole preparation of one set by all sides, by turns; each of ours against each peer."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repetitions):
            for side in sides:
                save = ["--save", Path(folder) / f"{side}.arrow"] if turn == 0 else []
                seconds[side].append(worker("benchmarks.sides", side, path, *save)["seconds"])
                print(f"  {path.stem} {side}: {pairs / seconds[side][-1]:,.0f} rows/s", file=sys.stderr, flush=True)
        checks = {side: compare.tables(Path(folder), sides[0], side, pairs) for side in sides[1:]}
    rows = []
    for peer in [side for side in sides if side in report.PEERS]:
        for ours in [side for side in sides if side not in report.PEERS]:
            rows.append(
                {
                    "work": "preparation",
                    "set": path.stem.split("-")[0],
                    "peer": peer,
                    "ours": ours,
                    "peer_seconds": min(seconds[peer]),
                    "our_seconds": min(seconds[ours]),
                    "items": pairs,
                    "unit": "rows",
                    "check": checks[ours],
                }
            )
    return rows


def kernel(name: str, size: int, repetitions: int, folder: Path, threads: int = CORES) -> Result:
    """One kernel against its peer; for `first`, the fastest of as many processes as there are repetitions."""
    command = ("benchmarks.kernels", name, size, "--repetitions", repetitions, "--folder", folder)
    runs = [worker(*command, threads=threads) for _ in range(repetitions if name == "first" else 1)]
    best = {key: min(run[key] for run in runs) for key in ("peer_seconds", "our_seconds")}
    return {"work": name, "threads": threads, **runs[0], **best, "check": "equal"}


def memory(path: Path, sides: list[str], pairs: int) -> list[Result]:
    """Peak memory of each side on one set, in a run of its own: looking at it takes time."""
    rows = []
    for side in sides:
        found = worker("benchmarks.sides", side, path, "--memory")
        rows.append({"work": "memory", "set": path.stem.split("-")[0], "side": side, "items": pairs, **found})
    return rows


def run(given: argparse.Namespace) -> Iterator[list[Result]]:
    """All comparisons that were asked for, as they are made."""
    folder, repeat = given.sets.resolve(), given.repetitions
    folder.mkdir(parents=True, exist_ok=True)
    paths = sets.write_sets(folder, given.pairs, ("hh",) if given.quick else ("hh", "long"))
    if "preparation" in given.only:
        for path in paths.values():
            yield preparation(path, given.sides, given.pairs, repeat)
    short = min(given.bytes, 1_000_000)
    for name, size, threads in [
        ("tokenize", given.bytes, CORES),
        ("first", short, CORES),
        ("mask", given.scores, 1),
        ("packing", given.lengths, 1),
    ]:
        if name in given.only:
            yield [kernel(name, size, repeat, folder, threads=threads)]
    if "memory" in given.only:
        for path in paths.values():
            yield memory(path, given.sides, given.pairs)
    for pairs in given.growth:
        yield memory(sets.write_set(folder / f"hh-{pairs}.jsonl", "hh", pairs), ["disk"], pairs)


def main() -> None:
    works = ["preparation", "tokenize", "first", "mask", "packing", "memory"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--write", type=Path, help="write the results as a page, such as docs/speed.md")
    parser.add_argument("--only", nargs="+", choices=works, default=works, help="some of the comparisons")
    parser.add_argument("--sides", nargs="+", default=list(report.OURS))
    parser.add_argument("--pairs", type=int, default=21_000)
    parser.add_argument("--bytes", type=int, default=50_000_000)
    parser.add_argument("--scores", type=int, default=10_000_000)
    parser.add_argument("--lengths", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--growth", nargs="*", type=int, default=[], help="peak memory at these numbers of pairs")
    parser.add_argument("--sets", type=Path, default=ROOT / "benchmarks/.sets", help="where the sets are kept")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    given = parser.parse_args()
    if given.quick:
        given.pairs, given.bytes, given.scores, given.lengths, given.repetitions = 100, 100_000, 50_000, 5_000, 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    found: dict[str, Any] = {"machine": report.machine(CORES), "quick": given.quick, "results": []}
    for some in run(given):
        found["results"] += some
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if given.write:
            given.write.write_text(report.page(found), encoding="utf-8")
    print(report.table(found["results"]))


if __name__ == "__main__":
    main()
