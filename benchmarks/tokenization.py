"""Ids of many texts: `Tokenizer.encode` against `tokenizers` (`encode_batch_fast`), at equal threads, in one run.

    python benchmarks/tokenization.py [OUT.json] [--megabytes 50] [--threads 1 2] [--repeat 3] [--data ../shared/data]

The texts are the real ones of the data folder, repeated with seeded word swaps. `first touch` is the first megabyte in
a new process, without the loading. Ids are compared before any ratio is printed. Other public tokenizers are measured
beside them where they are installed (fastokens, gigatoken).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOKENIZERS = ("gpt-neox-20b", "phi-2", "falcon")
FIRST_BYTES = 1_000_000
SWAPPED = 0.05  # share of a text's words that are taken from another text


def real_texts(data: Path) -> list[str]:
    """Every text of the preference data, in a seeded order."""
    import polars as pl

    texts: list[str] = []
    with gzip.open(data / "hh-rlhf-harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            texts += json.loads(line).values()
    for language in ("en", "zh"):
        with gzip.open(data / f"sharegpt-dpo-{language}.json.gz", "rt", encoding="utf-8") as file:
            for row in json.load(file):
                texts += [turn["value"] for turn in [*row["conversations"], row["chosen"], row["rejected"]]]
    frame = pl.read_parquet(data / "alpaca-candidates.parquet", columns=["prompt", "response"])
    texts += [*frame["prompt"].unique(maintain_order=True), *frame["response"].drop_nulls()]
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[index] for index in order]


def many_texts(real: list[str], size: int) -> list[str]:
    """`size` bytes of them: as they are, then again and again with words swapped."""
    rng = np.random.default_rng(1)
    words = [word for text in real[:2000] for word in text.split(" ")]
    texts, total, share = [], 0, 0.0
    while True:
        for text in real:
            parts = text.split(" ")
            swaps = int(len(parts) * share)
            for at, word in zip(
                rng.integers(len(parts), size=swaps), rng.integers(len(words), size=swaps), strict=True
            ):
                parts[at] = words[word]
            texts.append(" ".join(parts))
            total += len(texts[-1].encode())
            if total >= size:
                return texts
        share = SWAPPED


def ours(path: Path) -> Callable[[list[str]], Any]:
    import polars as pl

    from pyprefopt.data import load_tokenizer

    tokenizer = load_tokenizer(path, eos_token="<|endoftext|>", chat_template="plain")  # noqa: S106
    assert tokenizer.engine == "fast", tokenizer.why
    return lambda texts: tokenizer.encode(pl.Series("texts", texts))


def reference(path: Path) -> Callable[[list[str]], Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda texts: tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def fastokens(path: Path) -> Callable[[list[str]], Any]:
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda texts: tokenizer.encode_batch(texts, add_special_tokens=False)


def gigatoken(path: Path) -> Callable[[list[str]], Any]:
    from gigatoken import Tokenizer

    return Tokenizer.from_json(path.read_bytes()).encode_batch


PEERS = {"fastokens": fastokens, "gigatoken": gigatoken}
ENGINES = {"pyprefopt": ours, "tokenizers": reference, **PEERS}


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def flat(result: Any) -> Iterator[list[int]]:
    """Each text's ids."""
    for encoding in result.to_list() if hasattr(result, "to_list") else result:
        yield list(getattr(encoding, "ids", encoding))


def measure(name: str, data: Path, size: int, repeat: int, peers: list[str]) -> dict[str, Any]:
    """Best of several alternating repetitions on `size` bytes; the first run's ids are compared."""
    path = data / "tokenizers" / f"{name}.json"
    texts = many_texts(real_texts(data), size)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    encoders, best, skipped = {}, {}, {}
    for engine in ("tokenizers", "pyprefopt", *peers):
        try:
            encoders[engine] = ENGINES[engine](path)
            encoders[engine](texts[:20])
        except Exception as error:  # a peer that cannot is left out, and said so
            skipped[engine] = repr(error)[:200]
            encoders.pop(engine, None)
    assert {"tokenizers", "pyprefopt"} <= set(encoders), skipped
    expected = None
    for turn in range(repeat):
        for engine, encode in encoders.items():
            spent, result = seconds(lambda encode=encode: encode(texts))
            best[engine] = min(spent, best.get(engine, spent))
            if turn == 0:
                got = list(flat(result))
                expected = got if engine == "tokenizers" else expected
                if got != expected:
                    assert engine != "pyprefopt", f"{name}: the ids differ"
                    skipped[engine] = "its ids differ"
    speeds = {f"{engine}, MB/s": megabytes / spent for engine, spent in best.items()}
    return speeds | {"ratio": best["tokenizers"] / best["pyprefopt"], "megabytes": megabytes, "notes": skipped}


def first_touch(name: str, data: Path, engine: str) -> dict[str, Any]:
    """The first megabyte of this process, and the loading before it, in seconds."""
    path = data / "tokenizers" / f"{name}.json"
    texts = many_texts(real_texts(data), FIRST_BYTES)
    load, encode = seconds(lambda: ENGINES[engine](path))
    first, result = seconds(lambda: encode(texts))
    return {"load": load, "first": first, "sum": hash(tuple(map(tuple, flat(result))))}


def process(arguments: argparse.Namespace, threads: int, *work: str) -> dict[str, Any]:
    """This file in a new process, with so many threads."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    settings = [str(arguments.data), str(arguments.megabytes), str(arguments.repeat)]
    run = subprocess.run(
        [sys.executable, __file__, "--worker", *work, *settings], env=environment, stdout=subprocess.PIPE, check=True
    )
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def worker(work: list[str]) -> None:
    kind, name, detail, data, megabytes, repeat = work
    if kind == "many":
        peers = [peer for peer in detail.split(",") if peer]
        result = measure(name, Path(data), int(float(megabytes) * 1e6), int(repeat), peers)
    else:
        result = first_touch(name, Path(data), detail)
    print(json.dumps(result))


def compare_first(arguments: argparse.Namespace, name: str, threads: int) -> dict[str, Any]:
    """Best of several alternating new processes."""
    runs: dict[str, list[dict[str, Any]]] = {"tokenizers": [], "pyprefopt": []}
    for _ in range(arguments.repeat):
        for engine, results in runs.items():
            results.append(process(arguments, threads, "first", name, engine))
    assert len({run["sum"] for results in runs.values() for run in results}) == 1, f"{name}: the ids differ"
    best = {
        engine: {key: min(run[key] for run in results) for key in ("load", "first")} for engine, results in runs.items()
    }
    ratios = {key: best["tokenizers"][key] / best["pyprefopt"][key] for key in ("load", "first")}
    return {"seconds": best, "ratio": ratios["first"], "ratio of loading": ratios["load"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tokenizers", nargs="+", default=["gpt-neox-20b", "phi-2"], choices=TOKENIZERS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / ".." / "shared" / "data")
    arguments = parser.parse_args()
    results = {
        f"{name}, {threads} threads": {
            "many": process(arguments, threads, "many", name, ",".join(arguments.peers)),
            "first touch": compare_first(arguments, name, threads),
        }
        for name in arguments.tokenizers
        for threads in arguments.threads
    }
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2:])
    else:
        main()
