"""Workers that read mutated files, and what came of each: a signal or a hang is seen from outside."""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.mutated.mutate import mutate, mutate_json

ROOT = Path(__file__).parents[3]
SECONDS = 30  # that one file may take
Change = Callable[[bytes, int], bytes]
PANIC = ("panicked", "PanicException", "RUST_BACKTRACE", "Traceback")


@dataclass(frozen=True)
class Case:
    """A sample, a seed, and how the result is read."""

    sample: str
    seed: int
    entry: str


@dataclass(frozen=True)
class Outcome:
    case: Case
    kind: str  # right, refused, raised, signal, hang
    said: str

    @property
    def is_good(self) -> bool:
        """A right result, or a sentence."""
        return self.kind == "right" or (self.kind == "refused" and not any(word in self.said for word in PANIC))


class Worker:
    """One process, started again where a file ends it."""

    def __init__(self, directory: Path, tokenizer: Path) -> None:
        self.directory, self.tokenizer = directory, tokenizer
        directory.mkdir(parents=True)
        self.start()

    def start(self) -> None:
        self.errors = (self.directory / "errors").open("wb+")
        self.process: Any = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.data.mutated.worker", self.tokenizer],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            env=os.environ | {"PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "2", "RAYON_NUM_THREADS": "2"},
        )  # fmt: skip
        assert self.process.stdout.readline() == b"ready\n"  # what it takes to start is not the file's

    def run(self, case: Case, path: Path) -> Outcome:
        self.errors.truncate(0)
        self.process.stdin.write(json.dumps([case.entry, str(path)]).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if ready else b""
        if line:
            kind, said = json.loads(line)
            stderr = (self.directory / "errors").read_bytes().decode(errors="replace")
            return Outcome(case, kind, said + (f" [stderr: {stderr[:2000]}]" if "panicked" in stderr else ""))
        self.process.kill()
        code = self.process.wait()
        stderr = (self.directory / "errors").read_bytes().decode(errors="replace")
        self.start()
        return Outcome(case, "signal" if ready else "hang", f"{code} {stderr[-1500:]}")

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def run_cases(
    cases: Iterable[Case],
    samples: dict[str, bytes],
    folder: Path,
    tokenizer: Path,
    directory: Path,
    *,
    workers: int = 2,
    change: Change | None = mutate,
) -> Iterator[Outcome]:
    """What came of each case; a few are read at once. `change` gets sample and seed; None: read as it is."""
    todo: queue.Queue[Case] = queue.Queue()
    for case in cases:
        todo.put(case)
    done: queue.Queue[Outcome | Exception | None] = queue.Queue()

    def work(number: int) -> None:
        place = directory / f"worker-{number}"
        worker = Worker(place, tokenizer)
        while True:
            try:
                case = todo.get_nowait()
            except queue.Empty:
                worker.stop()
                done.put(None)
                return
            try:
                done.put(worker.run(case, write(case, samples, folder, place, change)))
            except Exception as error:
                done.put(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(workers)]
    for thread in threads:
        thread.start()
    for _ in threads:
        while (outcome := done.get()) is not None:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


def write(case: Case, samples: dict[str, bytes], folder: Path, place: Path, change: Change | None) -> Path:
    """The mutated file or folder."""
    if case.sample in samples:
        path = place / case.sample
        path.write_bytes(change(samples[case.sample], case.seed) if change else samples[case.sample])
        return path
    path = place / "folder"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder, path)
    shutil.copyfile(folder.parent / "pairs.jsonl", place / "pairs.jsonl")
    if change is None:
        return path
    if case.sample == "manifest":
        manifest = path / "manifest.json"
        manifest.write_bytes(mutate_json(manifest.read_bytes(), case.seed))
    else:
        from tests.data.mutated.shards import lie

        lie(path, case.seed)
    return path


def entries(sample: str) -> tuple[str, ...]:
    """How a sample is read."""
    return ("look", "again") if sample in ("manifest", "shard") else ("read", "tokenize", "truncate", "prepare")
