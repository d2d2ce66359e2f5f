"""The results as a Markdown table and as docs/speed.md."""

from __future__ import annotations

import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.goals import AT_LEAST

PACKAGES = (
    "pyprefopt",
    "trl",
    "transformers",
    "datasets",
    "tokenizers",
    "gigatoken",
    "numba",
    "numpy",
    "polars",
    "pyarrow",
)
SETS = {"hh": "HH transcripts", "long": "long chats"}
PEERS = {
    "trl": "TRL's `DPOTrainer` preparation, 2 processes",
    "glued": "by hand, in memory: Polars, f-strings, gigatoken, numba",
    "expressions": "by hand, in memory: Polars expressions, gigatoken, numba",
}
OURS = {
    "trl": "TRL, 2 processes",
    "glued": "by hand, f-strings",
    "expressions": "by hand, Polars expressions",
    "memory": "`tokenize(FILE, offsets=False)`, in memory",
    "disk": "`prepare(…, offsets=False)`, on disk",
    "offsets": "`prepare`, on disk, with offsets",
}
KERNELS = {
    "tokenize": ("tokenization", "`tokenizers`, `encode_batch_fast`"),
    "first": ("tokenization, text seen for the first time", "`tokenizers`, `encode_batch_fast`"),
    "mask": ("top-30 % mask of ragged scores", "a loop over `numpy.argpartition`"),
    "packing": ("packing lengths", "TRL's `_pack_bfd`"),
}


def machine(cores: int) -> dict[str, Any]:
    """When, on what class of processor, with which versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "cores": cores,
        "python": platform.python_version(),
        "versions": versions,
    }


def _rate(result: dict[str, Any], who: str) -> str:
    rate = result["items"] / result[f"{who}_seconds"]
    if result["unit"] == "rows":
        return f"{rate:,.0f} rows/s"
    return f"{rate / 1e6:,.1f} MB/s" if result["unit"] == "bytes" else f"{rate / 1e6:,.2f} M {result['unit']}/s"


def _line(result: dict[str, Any]) -> list[str]:
    ratio = result["peer_seconds"] / result["our_seconds"]
    key = (result["work"], result.get("set"), result.get("peer"))
    # The hand-made pipelines write nothing to disk.
    goal = None if key[2] == "glued" and result["ours"] != "memory" else AT_LEAST.get(key)
    if result["work"] == "preparation":
        work, peer = f"whole preparation, {SETS[result['set']]}: {OURS[result['ours']]}", PEERS[result["peer"]]
    else:
        work, peer = KERNELS[result["work"]]
        threads = "one thread" if result["threads"] == 1 else f"{result['threads']} threads"
        work = f"{work}, {result['items']:,} {result['unit']}, {threads}"
    return [work, peer, _rate(result, "peer"), _rate(result, "our"), f"{ratio:.1f}x", f"{goal}x" if goal else ""]


def table(results: list[dict[str, Any]]) -> str:
    """All results as Markdown tables."""
    rows = [_line(result) for result in results if result["work"] != "memory"]
    text = _markdown(["work", "against", "peer", "ours", "ratio", "wanted"], rows) if rows else ""
    packed = [r for r in results if r["work"] == "packing"]
    for one in packed:
        share = one["bins"] / one["lower_bound"]
        text += (
            f"\nPacking: {one['bins']:,} bins, TRL {one['peer_bins']:,}; {share:.5f} of the lower bound ⌈sum / 4096⌉.\n"
        )
    peaks = [r for r in results if r["work"] == "memory"]
    if peaks:
        lines = [
            [SETS[r["set"]], f"{r['items']:,}", OURS[r["side"]], _mb(r["peak_bytes"]), _mb(r["before_bytes"])]
            for r in peaks
        ]
        text += "\n" + _markdown(["set", "pairs", "side", "peak memory", "before the work (imports, tokenizer)"], lines)
    checks = sorted(
        {f"{SETS[r['set']]}, {OURS[r['ours']]}: {r['check']}" for r in results if r["work"] == "preparation"}
    )
    return text + ("\nChecked: " + "; ".join(checks) + ".\n" if checks else "")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def page(found: dict[str, Any]) -> str:
    """docs/speed.md."""
    at = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    note = "**A quick run: it shows that everything runs, and measures nothing.**\n\n" if found["quick"] else ""
    return f"""# Speed

{note}Written by `python benchmarks/data.py --write docs/speed.md` on {at["date"]}: {at["cpu"]}, {at["cores"]} cores,
Python {at["python"]}, {versions}.

{table(found["results"])}
## How it is measured

Peer and we run by turns in one run on the same {at["cores"]} cores, whole preparation and memory in a new process
each time; the fastest run of each counts. Imports, the tokenizer's loading and a warm-up on two rows come before
the clock starts. No ratio is given unless token ids, masks and the split of prompt and response are equal for
every row, with one exception that is counted: where the space that a template puts before an answer stays a token
of its own, `mask` says that the assistant did not write it.

* The sets are real pairs, as many copies as needed; in each copy 15 % of the vocabulary are exchanged for other
  words of the corpus, seeded. HH transcripts have some 425 characters of prompt and 190 a response; the long
  chats, ShareGPT's and Alpaca answers put together, some 950 and 2,350. Tokenizer: GPT-NeoX-20B; template:
  `plain`.
* TRL begins with messages that are parsed already and memory-mapped; its time holds rendering, tokenization and
  the split. Ours and the hand-made pipelines begin with JSON lines. TRL's cache is off.
* The hand-made pipelines give ids, masks and splits in memory, and check nothing; in one Python's f-strings fill
  the template in, row by row, in the other Polars expressions, a column at a time. `prepare(…, offsets=False)`
  stores the same on disk, synced and hashed. With offsets, each token's bytes and turn come too, which cuts by
  text and `align` need.
* TRL's packer gets lists without content, so that it moves no tokens. The lengths are log-normal (median 245,
  mean 367), cut at the capacity of 4096. Our time holds the whole call, NumPy to NumPy.
* Peak memory is the sum of proportional set sizes over the process and its children, looked at every 20 ms.
"""
