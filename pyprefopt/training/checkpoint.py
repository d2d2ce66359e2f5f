"""Checkpoints of a stage: `checkpoints/step-N/`, whole once their manifest is there.

deepspeed/…            DeepSpeed's own files: weights, optimizer state, one part a rank
rng-R.safetensors      random states of rank R: torch (CPU, CUDA), NumPy, Python
manifest.json          schema, key, step, world size, ZeRO stage, score, state, sha256 of every file; written last
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pyprefopt.errors import ArtifactError
from pyprefopt.ranks import barrier, from_main, is_main, rank, world_size
from pyprefopt.storage.files import sync_files
from pyprefopt.storage.folders import Folder

if TYPE_CHECKING:
    from pyprefopt.training.engine import Engine

SCHEMA = 1
log = logging.getLogger(__name__)


class Checkpoint(Folder):
    """One checkpoint: `step-N`."""

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, with the hash of every file, once all of them are on the disk."""
        sync_files(self.path)
        super().finish({**manifest, "files": self.hashes()})


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one stage in `directory`; only those of `key` are ever resumed."""

    directory: Path
    key: str
    zero_stage: int
    keep: int  # how many of the last are kept, besides the best

    def save(self, engine: Engine, step: int, state: Mapping[str, Any], score: float | None = None) -> None:
        """Write `step-N`; every rank calls this. `score`: of the evaluation, higher is better; None: not evaluated."""
        checkpoint = self._at(step)
        if is_main():
            checkpoint.clear()
        barrier()
        engine.save(checkpoint.path)
        _save_rng(checkpoint.path / f"rng-{rank()}.safetensors")
        barrier()
        if is_main():
            checkpoint.finish({
                "schema": SCHEMA, "key": self.key, "step": step, "world_size": world_size(),
                "zero_stage": self.zero_stage, "score": score, "state": dict(state),
            })  # fmt: skip
            self._prune()
        barrier()

    def resume(self, engine: Engine) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into `engine`.

        Every rank calls this. Incomplete, damaged and foreign ones are removed and named.

        Returns:
            Its `state`, or None where there is no checkpoint.

        Raises:
            ArtifactError: the checkpoint is of another number of ranks or ZeRO stage.
        """
        step, problem = -1, None
        if is_main():
            try:
                step = self._newest()
            except ArtifactError as error:
                step, problem = -2, error
        step = from_main(step)
        if step == -2:
            raise problem or ArtifactError(f"rank 0 cannot use the checkpoints in {self.directory}; see its message")
        if step == -1:
            return None
        checkpoint = self._at(step)
        engine.load(checkpoint.path)
        _load_rng(checkpoint.path / f"rng-{rank()}.safetensors")
        state: dict[str, Any] = checkpoint.manifest["state"]
        return state

    def _at(self, step: int) -> Checkpoint:
        return Checkpoint(self.directory / f"step-{step}")

    def _all(self) -> list[Checkpoint]:
        """What is there, whole or not, by steps."""
        return [self._at(step) for step in sorted(int(path.name[5:]) for path in self.directory.glob("step-*"))]

    def _newest(self) -> int:
        """Step of the newest checkpoint whose manifest and files verify, or -1."""
        newest = -1
        for checkpoint in reversed(self._all()):
            reason = self._unusable(checkpoint)
            if reason:
                log.warning("checkpoint %s is removed: %s", checkpoint, reason)
                checkpoint.remove()
            elif newest < 0:
                newest = int(checkpoint.manifest["step"])
        return newest

    def _unusable(self, checkpoint: Checkpoint) -> str:
        """Why the checkpoint cannot be used, or an empty string. Raises where another launch could use it."""
        manifest = checkpoint.find_manifest()
        if manifest is None:
            return "it is incomplete (the run was stopped while saving)"
        if manifest["schema"] != SCHEMA:
            return f"its schema is {manifest['schema']}, this version reads {SCHEMA}"
        if manifest["key"] != self.key:
            return "it belongs to other settings or data"
        for name, ours in {"world_size": world_size(), "zero_stage": self.zero_stage}.items():
            if manifest[name] != ours:
                raise ArtifactError(
                    f"checkpoint {checkpoint} was written with {name} {manifest[name]}, this run has {ours}; start it "
                    f"with {name} {manifest[name]}, or delete {self.directory} to train this stage from its start"
                )
        damaged = checkpoint.altered(manifest["files"], alone=True)
        return f"{damaged} is not as it was written (sha256 differs)" if damaged else ""

    def _prune(self) -> None:
        """Keep the last `keep` checkpoints and the best one."""
        whole = {checkpoint: checkpoint.manifest["score"] for checkpoint in self._all() if checkpoint.is_finished}
        scored = {checkpoint: score for checkpoint, score in whole.items() if score is not None}
        best = max(scored, key=lambda checkpoint: float(scored[checkpoint]), default=None)
        for checkpoint in list(whole)[: -self.keep]:
            if checkpoint is not best:
                checkpoint.remove()


def seed_rng(seed: int) -> None:
    """Begin torch's random numbers, for an adapter's dropout: the same in every run, others on each rank."""
    torch.manual_seed((seed + rank()) % 2**64)


def _save_rng(path: Path) -> None:
    """Random states of this rank, without pickle: tensors, and JSON for the small rest."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    rest = {"numpy": [kind, int(position), int(has_gauss), float(gauss)], "python": random.getstate()}
    save_file(tensors, path, metadata={"rest": json.dumps(rest)})


def _load_rng(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        rest = json.loads(file.metadata()["rest"])
        torch.set_rng_state(file.get_tensor("torch"))
        kind, position, has_gauss, gauss = rest["numpy"]
        np.random.set_state((kind, file.get_tensor("numpy").numpy().astype(np.uint32), position, has_gauss, gauss))
        if torch.cuda.is_available() and "cuda" in file.keys():  # noqa: SIM118 (a handle, not a mapping)
            torch.cuda.set_rng_state(file.get_tensor("cuda"))
    version, state, gauss = rest["python"]
    random.setstate((version, tuple(state), gauss))
