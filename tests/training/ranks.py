"""Trainings in processes of their own, which may be killed: forked from a server that has imported everything."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# Of the machine, or of the number of ranks, and not of the training.
TIMED = ("tokens_per_second", "useful_tokens_per_second", "padding_share", "peak_memory_gib")
SETTINGS = {"learning_rate": 1e-2, "num_train_epochs": 2.5, "global_batch_size": 6, "logging_steps": 2}


def free_port() -> str:
    """A port that no process has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_ranks(world: int, function: Callable, *args, **kwargs) -> list[int]:
    """Run `function` on `world` ranks; exit codes. As a launcher does, one rank's failure ends the others."""
    context = multiprocessing.get_context("forkserver")
    heavy = ["deepspeed", "torch._dynamo", "torch.utils.tensorboard"]  # an optimizer imports dynamo
    context.set_forkserver_preload([*heavy, "pyprefopt.training.trainer", "tests.training.toy"])
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    port = free_port()
    processes = [context.Process(target=_rank, args=(r, world, port, (function, args, kwargs))) for r in range(world)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 240
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + 10)  # the others may be ending for the same reason
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.02)
    return [process.exitcode for process in processes]


def _rank(rank: int, world: int, port: str, call: tuple[Callable, tuple, dict]) -> None:
    function, args, kwargs = call
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    from pyprefopt.training.engine import close

    try:
        function(*args, **kwargs)
        close()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def train(
    directory: Path,
    *,
    stage: int = 0,
    dtype: str = "float32",
    die: tuple[str, int] | None = None,
    per_batch: int = 1,
    dropout: float = 0.1,
    **settings,
) -> None:
    """Train the toy; `die`: how, and at which step, the last rank is killed. Writes `started`, `result.json`."""
    from pyprefopt import ranks
    from pyprefopt.losses import DPO
    from pyprefopt.settings.resolve import configure
    from pyprefopt.training import checkpoint
    from pyprefopt.training.callbacks import Callback
    from pyprefopt.training.trainer import HeldOut, Job, fit
    from tests.training.toy import ToyLoader, ToyModel, make_groups, with_ref_logps

    where, when = die or ("nowhere", -1)
    last = ranks.rank() == ranks.world_size() - 1

    class Watch(Callback):
        def on_start(self, progress):
            if ranks.is_main():
                with (directory / "started").open("a") as file:
                    file.write(f"{progress.step}\n")

        def on_step(self, progress, metrics):
            if where in ("step", "sigterm") and progress.step == when and last:
                os.kill(os.getpid(), signal.SIGKILL if where == "step" else signal.SIGTERM)

    def deadly(owner, name: str) -> None:
        original = getattr(owner, name)

        def replacement(path, *rest):
            if f"step-{when}" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
            original(path, *rest)

        setattr(owner, name, replacement)

    if where == "save" and last:  # DeepSpeed's files are there, this rank's random state is not
        deadly(checkpoint, "_save_rng")
    if where == "manifest":  # only rank 0 comes here: everything is there but the manifest
        deadly(checkpoint.Checkpoint, "finish")
    directory.mkdir(exist_ok=True)
    run = configure(
        model="m",
        data="embedded:toy",
        **{**SETTINGS, "save_steps": 3, "eval_steps": 5, **settings, "output_dir": str(directory)},
        zero_stage=stage,
        dtype=dtype,
    )
    groups = with_ref_logps(make_groups(20), ToyModel())
    loader = ToyLoader(groups, batch=6, per_batch=per_batch, rank=ranks.rank(), world=ranks.world_size())
    tests = {"eval": HeldOut(loader, loader)}
    job = Job("policy", ToyModel(dropout=dropout), DPO(), loader, run, run, directory / "policy", "key", tests)
    result = fit(job, [Watch()])
    if result.weights is not None:
        digest = hashlib.sha256()
        for name, value in sorted(result.weights.items()):
            digest.update(name.encode() + value.float().numpy().tobytes())
        (directory / "result.json").write_text(
            json.dumps({"weights": digest.hexdigest(), "before": result.eval_before})
        )


def metrics_of(directory: Path) -> list[dict]:
    """Lines of `metrics.jsonl` without times."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
