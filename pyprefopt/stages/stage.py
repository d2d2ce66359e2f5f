"""A stage is made once, in a folder of its own, and then used again.

Its key is the hash of what it reads. The folder's manifest is written last and holds the key that it was made for.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pyprefopt import ranks
from pyprefopt.losses import METHODS, Method
from pyprefopt.rewards import REWARDS, Reward
from pyprefopt.settings.config import RunConfig
from pyprefopt.storage.files import content_hash, sha256_file
from pyprefopt.storage.folders import MANIFEST, Folder
from pyprefopt.storage.locks import FolderLock
from pyprefopt.training.usage import peak_memory, reset_peak_memory
from pyprefopt.types import keyed_names, unkeyed

SCHEMA = 4  # raised when an artifact's format changes, so that no old artifact is reused

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage's fields are what it reads; its key is their hash, and `build` makes it."""

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
        """Write the artifact's files.

        Args:
            directory: the artifact's folder, which is there; a killed run of the same key may have left files in it.
            runtime: the run's settings, for those that change no result and for where files are.

        Returns:
            What the manifest holds besides; of `facts` the summary is made, `fingerprint` replaces the key as the hash
            that later stages read.
        """
        raise NotImplementedError


@runtime_checkable
class _HasFingerprint(Protocol):
    @property
    def fingerprint(self) -> str: ...


def plain(value: Any) -> Any:
    """A value as JSON: artifacts, models and tokenizers by the hash of their content, a method by name and settings.

    A method or provider of the user's has the hash of its file beside its name.
    """
    if isinstance(value, _HasFingerprint):
        return value.fingerprint
    if is_dataclass(value):
        kind: Any = type(value)
        content: dict[str, Any] = {}
        if isinstance(value, Method):
            content = {"method": METHODS.identity(kind), **value.content}
        elif isinstance(value, Reward):
            content = {"name": REWARDS.identity(kind)}
        return {name: plain(getattr(value, name)) for name in keyed_names(kind)} | content
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and the content of its manifest."""

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
    """The manifest of `directory`, or None where it is not this stage's artifact as it was written.

    All its files must be there with their content, bit by bit: what is made from them is keyed by that content.

    Args:
        stage: whose key the artifact must have been made for.
        directory: the artifact's folder.
        report: rank 0 logs the first folder or output that was altered.
    """
    manifest = Folder(directory).made_for(stage.key)
    if manifest is None:
        return None
    altered: Path | None = directory / MANIFEST
    if _is_sound(manifest):
        altered = _altered(directory, _parts(directory, stage.outputs(directory)), manifest["files"])
    if altered is not None and report and ranks.is_main():
        logger.warning("%s: %s is not as it was written (sha256 differs): it is made again", stage.name, altered)
    return manifest if altered is None else None


def _is_sound(manifest: Mapping[str, Any]) -> bool:
    """Whether what is read of any stage's manifest is of the types that were written."""
    if not all(isinstance(manifest.get(name), dict) for name in ("reads", "facts", "files")):
        return False
    hashes = [
        hashes for part in manifest["files"].values() for hashes in (part.values() if isinstance(part, dict) else [0])
    ]
    return all(isinstance(sha256, str) for sha256 in hashes) and isinstance(manifest.get("fingerprint", ""), str)


def _parts(directory: Path, outputs: Sequence[Path]) -> dict[str, Path]:
    """The artifact's folders and outputs by name; checkpoints may be deleted."""
    folders = [path for path in sorted(directory.glob("*")) if path.is_dir() and path.name != "checkpoints"]
    return {path.name: path for path in [*folders, *outputs] if path.exists()}


def _files(part: Path) -> dict[str, str]:
    """Name -> SHA-256 of a part's files; of a store those that its own manifest names."""
    store = Folder(part).find_manifest()
    if store is None:
        return Folder(part).hashes()
    return {MANIFEST: sha256_file(part / MANIFEST)} | {shard["file"]: shard["sha256"] for shard in store["shards"]}


def _altered(directory: Path, parts: Mapping[str, Path], files: Mapping[str, Mapping[str, str]]) -> Path | None:
    """The first part that is not as it was written; the artifact itself where one is missing, or is new."""
    if files.keys() != parts.keys():
        return directory
    return next(
        (path for name, path in parts.items() if Folder(path).altered(files[name], alone=MANIFEST not in files[name])),
        None,
    )


def run_stage(stage: Stage, directory: Path, runtime: RunConfig, *, run: str | None = None) -> Artifact:
    """Use the artifact in `directory` again, or build it there.

    Ranks that do not build wait for the manifest, never at a collective that could time out. A folder left by another
    key is removed; one left by this key (a killed run) is kept, so that training goes on from its checkpoints.

    Args:
        stage: what to make.
        directory: the artifact's folder.
        runtime: the run's settings, which `build` receives.
        run: the run's own folder, where `directory` is shared with other runs: only one makes it, the others wait.

    Returns:
        The finished artifact.

    Raises:
        ArtifactError: a manifest that is broken, or was not written before the launcher ended.
    """
    pending = {"key": stage.key, "run": run}
    with ExitStack() as turn:
        if not ranks.is_main():
            manifest = _follow(stage, directory, pending)
        else:
            manifest = finished(stage, directory, report=run is None)
            if manifest is None and run is not None:
                turn.enter_context(
                    FolderLock(directory.parent, name=f".lock-{directory.name}", setting="cache", wait=True)
                )
                manifest = finished(stage, directory)  # another run may have made it meanwhile
        if manifest is None:
            return _make(stage, directory, runtime, pending)
    if ranks.is_main():
        logger.info("%s: done before, used again (%s)", stage.title, directory)
    return Artifact(stage.title, directory, manifest, reused=True)


def _follow(stage: Stage, directory: Path, pending: dict[str, str | None]) -> dict[str, Any] | None:
    """What rank 0 decides, on another rank: the finished manifest, or None once rank 0 builds with this one."""
    folder = Folder(directory)

    def look() -> dict[str, Any] | None:
        if stage.collective and folder.pending == pending and not folder.is_finished:
            return {}
        try:
            return finished(stage, directory)
        except FileNotFoundError:  # rank 0 is just removing what is no more as it was written
            return None

    return ranks.wait_until(look, directory / MANIFEST) or None


def _make(stage: Stage, directory: Path, runtime: RunConfig, pending: dict[str, str | None]) -> Artifact:
    folder = Folder(directory)
    if ranks.is_main():
        logger.info("%s: making %s", stage.title, directory)
        if folder.is_finished:  # and not as it was written: nothing of it stays
            for part in _parts(directory, ()).values():
                part.unlink() if part.is_symlink() else shutil.rmtree(part)  # a link to a prepared folder
        if folder.begin(pending):
            logger.info("%s: settings or inputs changed, made again", stage.name)
    reset_peak_memory()
    began = time.perf_counter()
    extra = stage.build(directory, runtime)
    if ranks.is_main():
        facts = extra.pop("facts", {}) | {"seconds": time.perf_counter() - began, "peak_memory_bytes": peak_memory()}
        files = {name: _files(path) for name, path in _parts(directory, stage.outputs(directory)).items()}
        record = {"stage": stage.name, "key": stage.key, "reads": stage.reads}
        folder.finish({**record, **extra, "facts": facts, "files": files})
    manifest = ranks.wait_until(lambda: folder.made_for(stage.key), directory / MANIFEST)
    return Artifact(stage.title, directory, manifest, reused=False)
