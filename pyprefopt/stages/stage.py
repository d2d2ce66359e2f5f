"""A stage's artifact: a folder whose manifest, written last, says which key it was made for."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.data.store.shards import are_shards, check_shards
from pyprefopt.errors import ArtifactError
from pyprefopt.storage.files import MANIFEST, atomic_write, read_manifest, sha256_file, write_manifest
from pyprefopt.storage.locks import FolderLock
from pyprefopt.training.usage import Meter

SCHEMA = 1  # raised when an artifact's format changes, so that no old artifact is reused
KEY_FILE = "key.json"  # written when a stage begins: what a partial folder (checkpoints) belongs to

logger = logging.getLogger("pyprefopt")


def content_hash(value: object) -> str:
    """sha256 of a JSON-like value; the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Stage:
    """What a stage reads: its key is the hash of all of this."""

    name: str
    settings: dict[str, Any]  # the settings that it declares to read
    inputs: dict[str, str] = field(default_factory=dict)  # name of an input -> its content hash
    seed: int | None = None

    @property
    def key(self) -> str:
        """Hash of (stage, schema version, seed, settings, inputs)."""
        return content_hash([self.name, SCHEMA, self.seed, self.settings, self.inputs])


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and what its manifest says."""

    name: str
    directory: Path
    manifest: dict[str, Any]
    reused: bool

    @property
    def fingerprint(self) -> str:
        """Content hash of what the stage made; the key where the content follows from it."""
        return str(self.manifest.get("fingerprint", self.manifest["key"]))

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage reports for the final table."""
        return dict(self.manifest.get("facts", {}))


Build = Callable[[Path], dict[str, Any]]


def finished(
    stage: Stage, directory: Path, outputs: Sequence[Path] = (), *, tell: bool = True
) -> dict[str, Any] | None:
    """The manifest of `directory` if it was made for this stage's key and is as it was written, else None.

    All its files must be there with their content, bit by bit: what is made from them is keyed by that content. With
    `tell`, rank 0 says which of them is not.
    """
    if not (directory / MANIFEST).exists():
        return None
    manifest = read_manifest(directory)
    parts = _parts(directory, outputs)
    if manifest.get("key") != stage.key or manifest.get("files", {}).keys() != parts.keys():
        return None
    altered = _altered(directory, parts, manifest)
    if altered is not None and tell and ranks.is_main():
        logger.warning("%s: %s is not as it was written (sha256 differs): it is made again", stage.name, altered)
    return manifest if altered is None else None


def _store_folders(directory: Path) -> Iterator[Path]:
    """Folders of segments and values, which have a manifest of their own."""
    return (path.parent for path in sorted(directory.glob(f"*/{MANIFEST}")))


def _stores(directory: Path) -> dict[str, str]:
    """Name of each store -> hash of its manifest, which has the hashes of its shards."""
    return {folder.name: sha256_file(folder / MANIFEST) for folder in _store_folders(directory)}


def _altered(directory: Path, parts: Mapping[str, Path], manifest: Mapping[str, Any]) -> Path | None:
    """The first store or other part that is not as the manifest says it was written."""
    if manifest.get("stores") != _stores(directory):
        return directory
    if store := next((folder for folder in _store_folders(directory) if not is_whole(folder)), None):
        return store
    return next((path for name, path in parts.items() if _hashes(path) != manifest["files"][name]), None)


def is_whole(folder: Path) -> bool:
    """Whether every shard of a store is what its manifest says, bit by bit."""
    shards = read_manifest(folder).get("shards")
    if not shards or not are_shards(shards):
        return False
    try:
        check_shards(folder, shards)
    except ArtifactError:
        return False
    return True


def _parts(directory: Path, outputs: Sequence[Path]) -> dict[str, Path]:
    """The artifact's folders and outputs by name, but its stores; checkpoints may be deleted."""
    apart = {folder.name for folder in _store_folders(directory)} | {"checkpoints"}
    parts = {path.name: path for path in sorted(directory.glob("*")) if path.is_dir() and path.name not in apart}
    return parts | {path.name: path for path in outputs if path.exists()}


def _hashes(part: Path) -> list[str]:
    """sha256 of a part's files, in order of their names."""
    return [sha256_file(file) for file in sorted(part.rglob("*")) if file.is_file()]


def run_stage(
    stage: Stage,
    directory: Path,
    build: Build,
    *,
    label: str | None = None,
    outputs: Sequence[Path] = (),
    collective: bool = False,
    run: str | None = None,
) -> Artifact:
    """Reuse the artifact in `directory`, or build it there.

    `build(directory)` writes the files and returns the manifest's further fields (`facts`, `fingerprint`). It runs
    on rank 0 alone, or on every rank where `collective`; the others wait for the manifest, never at a collective
    that could time out. A folder left by another key is removed; one left by this key (a killed run) is kept, so
    that training goes on from its checkpoints. `label`: what the user calls it, where that is not the stage's name.
    `run`: the run's own folder, where `directory` is shared with other runs: only one makes it, the others wait.
    """
    label, claim = label or stage.name, {"key": stage.key, "run": run}
    with ExitStack() as turn:
        if not ranks.is_main():
            manifest = _follow(stage, directory, outputs, claim if collective else None)
        else:
            manifest = finished(stage, directory, outputs, tell=run is None)
            if manifest is None and run is not None:
                turn.enter_context(FolderLock(directory.parent, name=f".lock-{directory.name}", wait=True))
                manifest = finished(stage, directory, outputs)  # another run may have made it meanwhile
        if manifest is None:
            return _make(stage, directory, build, label, outputs, claim)
    if ranks.is_main():
        logger.info("%s: done before, used again (%s)", label, directory)
    return Artifact(label, directory, manifest, reused=True)


def _follow(
    stage: Stage, directory: Path, outputs: Sequence[Path], claim: dict[str, str | None] | None
) -> dict[str, Any] | None:
    """What rank 0 decides, on another rank: the finished manifest, or None once rank 0 makes it (with the `claim`)."""

    def look() -> dict[str, Any] | None:
        if claim is not None and _claimed_by(directory) == claim and not (directory / MANIFEST).exists():
            return {}
        try:
            return finished(stage, directory, outputs)
        except FileNotFoundError:  # rank 0 is just removing what is no more as it was written
            return None

    return ranks.wait_until(look, directory / MANIFEST) or None


def _make(
    stage: Stage, directory: Path, build: Build, label: str, outputs: Sequence[Path], claim: dict[str, str | None]
) -> Artifact:
    if ranks.is_main():
        logger.info("%s: making %s", label, directory)
        _claim(stage, directory, claim)
    meter, began = Meter(), time.perf_counter()
    extra = build(directory)
    if ranks.is_main():
        facts = extra.pop("facts", {}) | {"seconds": time.perf_counter() - began, "peak_memory_bytes": meter.peak()}
        record = {"stage": stage.name, "key": stage.key, "settings": stage.settings, "inputs": stage.inputs}
        files = {name: _hashes(path) for name, path in _parts(directory, outputs).items()}
        record |= extra | {"facts": facts, "files": files, "stores": _stores(directory)}
        write_manifest(directory, record)
    return Artifact(label, directory, ranks.wait_for_manifest(directory, stage.key), reused=False)


def _claim(stage: Stage, directory: Path, claim: dict[str, str | None]) -> None:
    before = _claimed_by(directory)
    if before is None or before["key"] != stage.key:
        if directory.exists():
            logger.info("%s: settings or inputs changed, made again", stage.name)
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
    elif (directory / MANIFEST).exists():  # finished once, and no more what it was: keep none of its stores
        for folder in list(_store_folders(directory)):
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)  # a link to a prepared folder
    if before != claim:
        atomic_write(directory / KEY_FILE, json.dumps(claim).encode())
    (directory / MANIFEST).unlink(missing_ok=True)  # an output is gone: nobody may take this for finished


def _claimed_by(directory: Path) -> dict[str, str | None] | None:
    """Key and run of who makes, or made, the folder."""
    try:
        claim: dict[str, str | None] = json.loads((directory / KEY_FILE).read_text())
    except FileNotFoundError:  # not claimed, or rank 0 is just removing what another key left
        return None
    return claim
