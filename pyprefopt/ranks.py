"""Ranks, threads, and what keeps runs apart: everything that must work before torch is loaded."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyprefopt.errors import ArtifactError, TrainingError, check, counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


T = TypeVar("T")
MOST_THREADS = 4  # for each core: more only wait for each other


def _env(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def rank() -> int:
    """This process's number among all; 0 without a launcher."""
    return _env("RANK", 0)


def world_size() -> int:
    """How many processes train together; 1 without a launcher."""
    return _env("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its machine."""
    return _env("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Processes of this run on this machine."""
    return _env("LOCAL_SIZE", _env("LOCAL_WORLD_SIZE", world_size()))  # the launchers' two names


def is_main() -> bool:
    """Whether this is rank 0, the one that writes, logs and prints."""
    return rank() == 0


def deepspeed_runner() -> int | None:
    """Process id of the `deepspeed` command that started this rank on this machine; None without one, or off Linux.

    It changes when that command has ended: DeepSpeed passes a SIGTERM to `deepspeed` on to nobody, and the ranks, which
    its inner launcher started, would train on unseen.
    """
    try:
        launcher = os.getppid()
        if b"deepspeed.launcher.launch" not in Path(f"/proc/{launcher}/cmdline").read_bytes():
            return None
        status = Path(f"/proc/{launcher}/stat").read_text()
        return int(status.rpartition(")")[2].split()[1])
    except OSError:
        return None


_RUNNER = deepspeed_runner()  # as this process began


def runner_has_ended() -> bool:
    """Whether the `deepspeed` command that started this rank has ended since."""
    return deepspeed_runner() != _RUNNER


def set_threads(threads: int | None = None) -> int:
    """Set the number of CPU threads of this rank.

    Ranks that together have more threads than cores are 3 to 60 times slower. Best called before torch is imported:
    OpenMP reads its environment then.

    Args:
        threads: how many; None: cores / local ranks, at least 1.

    Returns:
        The number.

    Raises:
        ConfigError: not > 0, or far more than the machine has cores.
    """
    check(threads is None or threads > 0, "threads", threads, "> 0 or None")
    cores = len(os.sched_getaffinity(0))
    rule = f"at most {MOST_THREADS * cores}, {MOST_THREADS} for each of the {counted(cores, 'core')} of this machine"
    remedy = "leave it out, then each rank has its share of the cores"
    check(threads is None or threads <= MOST_THREADS * cores, "threads", threads, rule, remedy)
    count = threads or max(1, cores // local_world_size())
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(count)
    return count


def all_sum(values: Tensor) -> Tensor:
    """Sum of `values` over all ranks, on every rank; the same tensor where there is one rank."""
    if world_size() == 1:
        return values
    import torch.distributed as dist

    if not dist.is_initialized():
        raise TrainingError("ranks cannot talk yet; call pyprefopt.training.engine.init_distributed() first")
    values = values.clone()
    dist.all_reduce(values)
    return values


def all_rows(values: Tensor) -> Tensor:
    """The rows of all ranks, [n, columns] each, one rank after another, on every rank."""
    if world_size() == 1:
        return values
    counts = values.new_zeros(world_size())
    counts[rank()] = len(values)
    counts = all_sum(counts)
    whole = values.new_zeros(int(counts.sum()), *values.shape[1:])
    first = int(counts[: rank()].sum())
    whole[first : first + len(values)] = values
    return all_sum(whole)


def _sum_of(value: int) -> int:
    if world_size() == 1:
        return value
    import torch

    on_gpu = torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl"
    return int(all_sum(torch.tensor([value], device="cuda" if on_gpu else "cpu")).item())


def barrier() -> None:
    """Wait for all ranks. Only for short waits: collectives time out; see `wait_until`."""
    _sum_of(0)


def from_main(value: int) -> int:
    """Rank 0's `value`, on every rank."""
    return _sum_of(value if is_main() else 0)


def any_rank(value: bool) -> bool:
    """Whether `value` is true on at least one rank."""
    return _sum_of(int(value)) > 0


def wait_until(look: Callable[[], T | None], path: str | Path, poll: float = 0.1) -> T:
    """Call `look` until it gives something.

    No collective, so nothing times out while rank 0 works for hours.

    Args:
        look: what is waited for; None: not yet.
        path: what rank 0 writes, for the error.
        poll: seconds between two looks.

    Returns:
        What `look` gave.

    Raises:
        ArtifactError: the launcher has ended.
    """
    launcher = os.getppid()
    while (found := look()) is None:
        if os.getppid() != launcher:
            raise ArtifactError(f"{path} was not written: the launcher of rank {rank()} has ended; start the run again")
        time.sleep(poll)
    return found
