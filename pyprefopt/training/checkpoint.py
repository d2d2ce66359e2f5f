"""Checkpoints of a stage: `checkpoints/step-N/`, whole once their manifest is there.

deepspeed/….pt         weights and optimizer state, one part a rank, under DeepSpeed's names
rng-R.safetensors      random states of rank R: torch (CPU, CUDA), NumPy, Python
manifest.json          schema, key, step, world size, ZeRO stage, score, state, sha256 of every file; written last

All of them are safetensors or JSON: a checkpoint that somebody else has written cannot run code.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyprefopt.errors import ArtifactError
from pyprefopt.modeling.checkpoints.state import check_state, load_state, save_state
from pyprefopt.ranks import any_rank, from_main, is_main, rank, world_size
from pyprefopt.storage.files import explain_writing, sync_files
from pyprefopt.storage.folders import Folder

if TYPE_CHECKING:
    from pyprefopt.training.engine import Engine

SCHEMA = 2
_KINDS = {  # of what a manifest holds
    "schema": int, "key": str, "step": int, "world_size": int, "zero_stage": int, "score": float | None,
    "state": dict, "files": dict,
}  # fmt: skip
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
        """Write `step-N`; every rank calls this. `score`: of the evaluation, higher is better; None: not evaluated.

        ArtifactError where the disk does not take it: nothing of it stays, and the checkpoints before do.
        """
        checkpoint = self._at(step)
        with self._whole_or_none(checkpoint):
            if is_main():
                checkpoint.clear()
        with self._whole_or_none(checkpoint):
            engine.save(checkpoint.path)
            _save_rng(checkpoint.path / f"rng-{rank()}.safetensors")
        with self._whole_or_none(checkpoint):
            if is_main():
                checkpoint.finish({
                    "schema": SCHEMA, "key": self.key, "step": step, "world_size": world_size(),
                    "zero_stage": self.zero_stage, "score": score, "state": dict(state),
                })  # fmt: skip
                self._prune()

    @contextmanager
    def _whole_or_none(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Wait for all ranks at the end; where the disk has failed one of them, all remove the checkpoint and end."""
        problem = None
        try:
            yield
        except OSError as error:
            problem = error
        if not any_rank(problem is not None):
            return
        if is_main():
            checkpoint.remove()
        before = [other for other in self._all() if other.is_finished and other.path != checkpoint.path]
        if problem is None:
            elsewhere = ArtifactError(f"checkpoint {checkpoint} is not written; see the message of another rank")
            elsewhere.same_on_all_ranks = True
            raise elsewhere
        kept = f": training goes on from {before[-1].path.name}, which is whole" if before else ""
        raise ArtifactError(explain_writing(problem, checkpoint.path) + kept) from problem

    def resume(
        self, engine: Engine, is_state: Callable[[Mapping[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into `engine`.

        Every rank calls this. Incomplete, damaged and foreign ones are removed and named.

        Args:
            engine: what has saved it, or one that is built in the same way.
            is_state: whether a checkpoint's `state` is one; it is asked before anything is loaded.

        Returns:
            Its `state`, or None where there is no checkpoint.

        Raises:
            ArtifactError: the checkpoint is of another number of ranks or ZeRO stage, or of another model.
        """
        step, problem = -1, None
        if is_main():
            try:
                step = self._newest(is_state)
            except ArtifactError as error:
                step, problem = -2, error
        step = from_main(step)
        if step == -2:
            raise problem or ArtifactError(f"rank 0 cannot use the checkpoints in {self.directory}; see its message")
        if step == -1:
            if is_main():
                self._begin()
            return None
        checkpoint = self._at(step)
        try:
            engine.load(checkpoint.path)
            _load_rng(checkpoint.path / f"rng-{rank()}.safetensors")
        except ArtifactError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ArtifactError(
                f"checkpoint {checkpoint} cannot be loaded into this model ({type(error).__name__}: {reason}); delete "
                "it, and the one before is taken"
            ) from error
        state: dict[str, Any] = checkpoint.manifest["state"]
        return state

    def _begin(self) -> None:
        """Leave a folder by which a later try knows that the training was begun; warn where there is one."""
        if self.directory.exists():
            log.warning("%s: no checkpoint is left of an earlier try; the training begins anew", self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def _at(self, step: int) -> Checkpoint:
        return Checkpoint(self.directory / f"step-{step}")

    def _all(self, *, report: bool = False) -> list[Checkpoint]:
        """The folders `step-N`, whole or not, by steps; what else has such a name stays where it is."""
        steps = []
        for path in self.directory.glob("step-*"):
            if re.fullmatch(r"step-(0|[1-9][0-9]{0,15})", path.name) and path.is_dir() and not path.is_symlink():
                steps.append(int(path.name[5:]))
            elif report:
                kind = "a link" if path.is_symlink() else "no folder of a checkpoint"
                log.warning("%s is %s and is left aside: checkpoints are folders step-N", path, kind)
        return [self._at(step) for step in sorted(steps)]

    def _newest(self, is_state: Callable[[Mapping[str, Any]], bool]) -> int:
        """Step of the newest checkpoint whose manifest and files verify, or -1."""
        newest = -1
        for checkpoint in reversed(self._all(report=True)):
            reason = self._unusable(checkpoint, is_state)
            if reason:
                log.warning("checkpoint %s is removed: %s", checkpoint, reason)
                checkpoint.remove()
            elif newest < 0:
                newest = int(checkpoint.manifest["step"])
        return newest

    def _unusable(self, checkpoint: Checkpoint, is_state: Callable[[Mapping[str, Any]], bool]) -> str:
        """Why the checkpoint cannot be used, or an empty string. Raises where another launch could use it."""
        try:
            manifest = checkpoint.find_manifest()
        except ArtifactError as error:
            return str(error).partition(";")[0]
        if manifest is None:
            return "it is incomplete (the run was stopped while saving)"
        if manifest.get("schema") != SCHEMA:
            return f"its schema is {manifest.get('schema')!r}, this version reads {SCHEMA}"
        wrong = [name for name, kind in _KINDS.items() if not _is(manifest.get(name), kind)]
        if not wrong:
            named = checkpoint.path.name == f"step-{manifest['step']}"
            hashes = all(isinstance(sha256, str) for sha256 in manifest["files"].values())
            wrong = [
                n
                for n, good in (("step", named), ("files", hashes), ("state", is_state(manifest["state"])))
                if not good
            ]
        if wrong:
            return f"'{wrong[0]}' in its manifest is not as it was written"
        if manifest["key"] != self.key:
            return "it belongs to other settings or data"
        for name, ours in {"world_size": world_size(), "zero_stage": self.zero_stage}.items():
            if manifest[name] != ours:
                raise ArtifactError(
                    f"checkpoint {checkpoint} was written with {name} {manifest[name]}, this run has {ours}; start it "
                    f"with {name} {manifest[name]}, or delete {self.directory} to train this stage from its start"
                )
        damaged = checkpoint.altered(manifest["files"], alone=True)
        return f"{damaged} is not as it was written (sha256 differs)" if damaged else _unreadable(checkpoint)

    def _prune(self) -> None:
        """Keep the last `keep` checkpoints and the best one."""
        whole = {checkpoint: checkpoint.manifest["score"] for checkpoint in self._all() if checkpoint.is_finished}
        scored = {checkpoint: score for checkpoint, score in whole.items() if score is not None}
        best = max(scored, key=lambda checkpoint: float(scored[checkpoint]), default=None)
        for checkpoint in list(whole)[: -self.keep]:
            if checkpoint is not best:
                checkpoint.remove()


def _is(value: object, kind: Any) -> bool:
    """Whether a value of a manifest is of this kind; True is no number."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _unreadable(checkpoint: Checkpoint) -> str:
    """Which of the files is not what was saved, in whatever manifest its hash may stand; or an empty string."""
    for path in sorted(checkpoint.path.rglob("*")):
        if path.suffix in (".pt", ".safetensors"):
            try:
                check_state(path)
            except ArtifactError as error:
                return str(error)
    return ""


def seed_rng(seed: int) -> None:
    """Begin torch's random numbers, for an adapter's dropout: the same in every run, others on each rank."""
    torch.manual_seed((seed + rank()) % 2**64)


def _save_rng(path: Path) -> None:
    """Write the random states of this rank."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    rest = [kind, int(position), int(has_gauss), float(gauss)]
    save_state({**tensors, "numpy_rest": rest, "python": random.getstate()}, path)


def _load_rng(path: Path) -> None:
    state = load_state(path)
    torch.set_rng_state(state["torch"])
    kind, position, has_gauss, gauss = state["numpy_rest"]
    np.random.set_state((kind, state["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
