"""Peak memory of a process with its children: proportional set sizes, so that shared pages count once (Linux)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

EVERY = 0.02  # seconds between two looks


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in task.read_text().split() for one in family(int(child))]
        except OSError:  # ended meanwhile
            continue
    return found


def proportional(pid: int) -> int:
    """Bytes of a process, each shared page divided by those that share it; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


class Peak:
    """The largest sum over this process and its children while the block runs."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled, self.bytes, self.before = enabled, 0, 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        if self.enabled:
            self.before = self.bytes = self._now()
            self._watch.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.enabled:
            self._done.set()
            self._watch.join()
            self.bytes = max(self.bytes, self._now())

    def _now(self) -> int:
        return sum(map(proportional, family(os.getpid())))

    def _sample(self) -> None:
        while not self._done.wait(EVERY):
            self.bytes = max(self.bytes, self._now())
