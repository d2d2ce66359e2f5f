"""Checkpoints of a stage: `checkpoints/step-N/`, whole once their manifest is there.

deepspeed/…            DeepSpeed's own files: weights, optimizer state, one part a rank
rng-R.safetensors      random states of rank R: torch (CPU, CUDA), NumPy, Python
manifest.json          schema, key, step, world size, ZeRO stage, score, state, sha256 of every file; written last
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pyprefopt.errors import ArtifactError
from pyprefopt.ranks import barrier, from_main, is_main, rank, world_size
from pyprefopt.storage.files import MANIFEST, atomic_write, sha256_file, sync

if TYPE_CHECKING:
    from pyprefopt.training.engine import Engine

SCHEMA = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one stage in `directory`; only those of `key` are ever resumed."""

    directory: Path
    key: str
    zero_stage: int
    keep: int  # how many of the last are kept, besides the best

    def save(self, engine: Engine, step: int, state: Mapping[str, Any], score: float | None = None) -> None:
        """Write `step-N`; every rank calls this. `score`: of the evaluation, higher is better; None: not evaluated."""
        path = self.directory / f"step-{step}"
        if is_main():
            _remove(path)
            path.mkdir(parents=True)
        barrier()
        engine.save(path)
        _save_rng(path / f"rng-{rank()}.safetensors")
        barrier()
        if is_main():
            manifest = {
                "schema": SCHEMA, "key": self.key, "step": step, "world_size": world_size(),
                "zero_stage": self.zero_stage, "score": score, "state": dict(state), "files": _hashes(path),
            }  # fmt: skip
            write_manifest(path, manifest)
            self._prune()
        barrier()

    def resume(self, engine: Engine) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into `engine`; returns its `state`, or None where there is none.

        Every rank calls this. Incomplete, damaged and foreign ones are removed and named. ArtifactError where the
        checkpoint is of another number of ranks or ZeRO stage.
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
        path = self.directory / f"step-{step}"
        engine.load(path)
        _load_rng(path / f"rng-{rank()}.safetensors")
        state: dict[str, Any] = _read_manifest(path)["state"]
        return state

    def _newest(self) -> int:
        """Step of the newest checkpoint whose manifest and files verify, or -1."""
        paths = sorted(self.directory.glob("step-*"), key=lambda path: -int(path.name.split("-")[1]))
        newest = -1
        for path in paths:
            reason = self._unusable(path)
            if reason:
                log.warning("checkpoint %s is removed: %s", path, reason)
                _remove(path)
            elif newest < 0:
                newest = int(_read_manifest(path)["step"])
        return newest

    def _unusable(self, path: Path) -> str:
        """Why the checkpoint cannot be used, or an empty string. Raises where another launch could use it."""
        if not (path / MANIFEST).exists():
            return "it is incomplete (the run was stopped while saving)"
        manifest = _read_manifest(path)
        if manifest["schema"] != SCHEMA:
            return f"its schema is {manifest['schema']}, this version reads {SCHEMA}"
        if manifest["key"] != self.key:
            return "it belongs to other settings or data"
        for name, ours in {"world_size": world_size(), "zero_stage": self.zero_stage}.items():
            if manifest[name] != ours:
                raise ArtifactError(
                    f"checkpoint {path} was written with {name} {manifest[name]}, this run has {ours}; start it with "
                    f"{name} {manifest[name]}, or delete {self.directory} to train this stage from its start"
                )
        files = _hashes(path)
        names = manifest["files"].keys() | files.keys()
        damaged = sorted(name for name in names if manifest["files"].get(name) != files.get(name))
        return f"{damaged[0]} is not as it was written (sha256 differs)" if damaged else ""

    def _prune(self) -> None:
        """Keep the last `keep` checkpoints and the best one."""
        manifests = [_read_manifest(path.parent) for path in self.directory.glob(f"step-*/{MANIFEST}")]
        manifests.sort(key=lambda manifest: int(manifest["step"]))
        scored = [manifest for manifest in manifests if manifest["score"] is not None]
        best = max(scored, key=lambda manifest: float(manifest["score"]))["step"] if scored else None
        for manifest in manifests[: -self.keep]:
            if manifest["step"] != best:
                _remove(self.directory / f"step-{manifest['step']}")


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` so that it is there whole or not at all, after all other files are on the disk."""
    for file in path.rglob("*"):
        if file.is_file():
            sync(file)
    atomic_write(path / MANIFEST, json.dumps(manifest, indent=1).encode())


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    return manifest


def _remove(path: Path) -> None:
    """Remove a checkpoint, its manifest first: a kill on the way leaves an incomplete one."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _hashes(path: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file but the manifest."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith(MANIFEST))
    with ThreadPoolExecutor() as pool:  # hashing gives the interpreter lock away
        return {str(f.relative_to(path)): h for f, h in zip(files, pool.map(sha256_file, files), strict=True)}


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
