"""Where blocks are worked on: in this process, or by the workers of a Ray cluster. Results come in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pyprefopt.data.parallel import in_threads
from pyprefopt.data.preparation.block import PrepareConfig, PreparedBlock, prepare_block
from pyprefopt.data.tokenization.block import TokenizerParts
from pyprefopt.errors import ConfigError, PyprefoptError, did_you_mean


def run_local(blocks: Iterable[Any], config: PrepareConfig, tokenizer: Any) -> Iterator[PreparedBlock]:
    """Blocks in this process; the caller writes meanwhile. At most five are in memory."""
    return in_threads(blocks, lambda block: prepare_block(block, config, tokenizer))


def run_ray(blocks: Iterable[Any], config: PrepareConfig, tokenizer: Any) -> Iterator[PreparedBlock]:
    """Blocks over a Ray cluster: the running one (RAY_ADDRESS, or one on this machine), else a local one is started.

    Every worker process opens the tokenizer once. A task of a worker that dies is run again, four times at most.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray)
    try:
        work = ray.remote(max_retries=4)(_remote_block)
        parts = ray.put(TokenizerParts.of(tokenizer))
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: deque[Any] = deque()
        for block in blocks:
            pending.append(work.remote(block, config, parts))
            if len(pending) >= limit:
                yield _result(ray, pending.popleft())
        while pending:
            yield _result(ray, pending.popleft())
    finally:
        if started:
            ray.shutdown()


def _result(ray: Any, task: Any) -> PreparedBlock:
    """What a task gave; our own errors without Ray's frame around them."""
    try:
        block: PreparedBlock = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PyprefoptError):
            raise error.cause from None
        raise
    return block


def _remote_block(block: Any, config: PrepareConfig, parts: TokenizerParts) -> PreparedBlock:
    from dataclasses import replace

    from pyprefopt.data.store.shards import to_ipc

    result = prepare_block(block, config, parts.open())
    return replace(result, shard=to_ipc(result.shard))


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("engine 'ray' needs Ray: pip install 'pyprefopt[ray]'") from None
    return ray


def _connect(ray: Any) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    except ConnectionError:
        if "RAY_ADDRESS" in os.environ:
            raise
        ray.init(include_dashboard=False, **quiet)


RUNNERS: dict[str, Callable[..., Iterator[PreparedBlock]]] = {"local": run_local, "ray": run_ray}


def runner(engine: str) -> Callable[..., Iterator[PreparedBlock]]:
    """The engine by name; ConfigError for an unknown one, or for Ray where it is not installed."""
    if engine not in RUNNERS:
        raise ConfigError(f"engine must be one of {', '.join(RUNNERS)}, got {engine!r}{did_you_mean(engine, RUNNERS)}")
    if engine == "ray":
        _ray()
    return RUNNERS[engine]
