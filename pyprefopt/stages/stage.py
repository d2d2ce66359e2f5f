"""A stage: what it reads, the key of that, and the folder in which it is made once and then used again.

The folder's manifest is written last and says which key it was made for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pyprefopt import ranks
from pyprefopt.data.store.shards import are_shards, check_shards
from pyprefopt.errors import ArtifactError
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import RunConfig
from pyprefopt.storage.files import MANIFEST, atomic_write, read_manifest, sha256_file, write_manifest
from pyprefopt.storage.locks import FolderLock
from pyprefopt.training.usage import peak_memory, reset_peak_memory
from pyprefopt.types import keyed_names, unkeyed

SCHEMA = 2  # raised when an artifact's format changes, so that no old artifact is reused
KEY_FILE = "key.json"  # written when a stage begins: what a partial folder (checkpoints) belongs to
METHOD_NAMES = {method: name for name, method in METHODS.items()}

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Something that is made once: its fields are what it reads, its key is their hash, `build` makes it."""

    name: str
    label: str | None = unkeyed(None)  # what the user calls it, where a run has several of one name
    collective: ClassVar[bool] = False  # every rank builds it; else rank 0 alone

    @cached_property
    def reads(self) -> dict[str, Any]:
        """The fields that decide the result, as the key and the manifest hold them."""
        return {name: plain(getattr(self, name)) for name in keyed_names(type(self))}

    @cached_property
    def key(self) -> str:
        """Hash of what the stage reads and of the format that it writes."""
        return content_hash([SCHEMA, self.reads])

    @property
    def title(self) -> str:
        """What messages and the final table call it."""
        return self.label or self.name

    def outputs(self, directory: Path) -> Sequence[Path]:  # noqa: ARG002
        """What it writes besides the artifact in `directory`."""
        return ()

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Write the artifact's files, and return what its manifest says further (`facts`, `fingerprint`).

        runtime: the run's settings, for those that change no result and for where files are.
        """
        raise NotImplementedError


@runtime_checkable
class _HasFingerprint(Protocol):
    @property
    def fingerprint(self) -> str: ...


def plain(value: Any) -> Any:
    """A value as JSON: artifacts and models by the hash of their content, a method by its name and settings."""
    if isinstance(value, _HasFingerprint):
        return value.fingerprint
    if is_dataclass(value):
        kind: Any = type(value)
        method = {"method": METHOD_NAMES[kind]} if kind in METHOD_NAMES else {}
        return method | {name: plain(getattr(value, name)) for name in keyed_names(kind)}
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def content_hash(value: object) -> str:
    """sha256 of a JSON-like value; the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    def reads(self) -> dict[str, Any]:
        """What the stage read, by the names of its fields."""
        return dict(self.manifest["reads"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage reports for the final table."""
        return dict(self.manifest.get("facts", {}))


def finished(stage: Stage, directory: Path, *, report: bool = True) -> dict[str, Any] | None:
    """The manifest of `directory` if it was made for this stage's key and is as it was written, else None.

    All its files must be there with their content, bit by bit: what is made from them is keyed by that content. With
    `report`, rank 0 logs which of them is not.
    """
    if not (directory / MANIFEST).exists():
        return None
    manifest = read_manifest(directory)
    parts = _parts(directory, stage.outputs(directory))
    if manifest.get("key") != stage.key or manifest.get("files", {}).keys() != parts.keys():
        return None
    altered = _altered(directory, parts, manifest)
    if altered is not None and report and ranks.is_main():
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


def run_stage(stage: Stage, directory: Path, runtime: RunConfig, *, run: str | None = None) -> Artifact:
    """Use the artifact in `directory` again, or build it there.

    Ranks that do not build wait for the manifest, never at a collective that could time out. A folder left by another
    key is removed; one left by this key (a killed run) is kept, so that training goes on from its checkpoints.
    `run`: the run's own folder, where `directory` is shared with other runs: only one makes it, the others wait.
    """
    claim = {"key": stage.key, "run": run}
    with ExitStack() as turn:
        if not ranks.is_main():
            manifest = _follow(stage, directory, claim)
        else:
            manifest = finished(stage, directory, report=run is None)
            if manifest is None and run is not None:
                turn.enter_context(FolderLock(directory.parent, name=f".lock-{directory.name}", wait=True))
                manifest = finished(stage, directory)  # another run may have made it meanwhile
        if manifest is None:
            return _make(stage, directory, runtime, claim)
    if ranks.is_main():
        logger.info("%s: done before, used again (%s)", stage.title, directory)
    return Artifact(stage.title, directory, manifest, reused=True)


def _follow(stage: Stage, directory: Path, claim: dict[str, str | None]) -> dict[str, Any] | None:
    """What rank 0 decides, on another rank: the finished manifest, or None once rank 0 builds with this one."""

    def look() -> dict[str, Any] | None:
        if stage.collective and _claimed_by(directory) == claim and not (directory / MANIFEST).exists():
            return {}
        try:
            return finished(stage, directory)
        except FileNotFoundError:  # rank 0 is just removing what is no more as it was written
            return None

    return ranks.wait_until(look, directory / MANIFEST) or None


def _make(stage: Stage, directory: Path, runtime: RunConfig, claim: dict[str, str | None]) -> Artifact:
    if ranks.is_main():
        logger.info("%s: making %s", stage.title, directory)
        _claim(stage, directory, claim)
    reset_peak_memory()
    began = time.perf_counter()
    extra = stage.build(directory, runtime)
    if ranks.is_main():
        facts = extra.pop("facts", {}) | {"seconds": time.perf_counter() - began, "peak_memory_bytes": peak_memory()}
        files = {name: _hashes(path) for name, path in _parts(directory, stage.outputs(directory)).items()}
        record = {"stage": stage.name, "key": stage.key, "reads": stage.reads, **extra, "facts": facts}
        write_manifest(directory, record | {"files": files, "stores": _stores(directory)})
    return Artifact(stage.title, directory, ranks.wait_for_manifest(directory, stage.key), reused=False)


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
