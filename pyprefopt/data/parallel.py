"""Work on several blocks at once, in this process; results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

THREADS = 2  # blocks worked on at once: the kernels use all cores, but not between them
_END = object()
Result = TypeVar("Result")


def in_threads(blocks: Iterable[Any], work: Callable[[Any], Result]) -> Iterator[Result]:
    """What `work` makes of each block, in order. One thread reads ahead, two work."""
    with ThreadPoolExecutor(THREADS, "prepare") as pool, ThreadPoolExecutor(1, "read") as reader:
        pending: deque[Future[Result]] = deque()
        try:
            for block in _read_ahead(reader, iter(blocks)):
                pending.append(pool.submit(work, block))
                if len(pending) >= THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _read_ahead(reader: ThreadPoolExecutor, blocks: Iterator[Any]) -> Iterator[Any]:
    """The blocks, the next one being read while the caller works."""
    ahead = reader.submit(next, blocks, _END)
    while (block := ahead.result()) is not _END:
        ahead = reader.submit(next, blocks, _END)
        yield block
