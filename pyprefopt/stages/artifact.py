"""A stage's artifact: a folder whose manifest, written last, says which key it was made for."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyprefopt.data.atomic import MANIFEST, atomic_write, read_manifest, write_manifest
from pyprefopt.stages.meter import Meter
from pyprefopt.train import dist

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


def finished(stage: Stage, directory: Path, outputs: Sequence[Path] = ()) -> dict[str, Any] | None:
    """The manifest of `directory` if it was made for this stage's key and all its files are still there, else None."""
    if not (directory / MANIFEST).exists():
        return None
    manifest = read_manifest(directory)
    if manifest.get("key") != stage.key:
        return None
    return manifest if manifest.get("files") == _files(directory, outputs) else None


def _files(directory: Path, outputs: Sequence[Path]) -> dict[str, list[int]]:
    """Sizes of the files of each part of the artifact, in order of their names; checkpoints may be deleted."""
    parts = {path.name: path for path in sorted(directory.glob("*")) if path.is_dir() and path.name != "checkpoints"}
    parts |= {path.name: path for path in outputs if path.exists()}
    return {
        name: [file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()]
        for name, path in parts.items()
    }


def run_stage(
    stage: Stage,
    directory: Path,
    build: Build,
    *,
    label: str | None = None,
    outputs: Sequence[Path] = (),
    collective: bool = False,
) -> Artifact:
    """Reuse the artifact in `directory`, or build it there.

    `build(directory)` writes the files and returns the manifest's further fields (`facts`, `fingerprint`). It runs
    on rank 0 alone, or on every rank where `collective`; the others wait for the manifest, never at a collective
    that could time out. A folder left by another key is removed; one left by this key (a killed run) is kept, so
    that training goes on from its checkpoints. `label`: what the user calls it, where that is not the stage's name.
    """
    label = label or stage.name
    manifest = finished(stage, directory, outputs)
    if manifest is not None:
        if dist.is_main():
            logger.info("%s: done before, used again (%s)", label, directory)
        return Artifact(label, directory, manifest, reused=True)
    if dist.is_main():
        logger.info("%s: making %s", label, directory)
        _claim(stage, directory)
    meter, began = Meter(), time.perf_counter()
    if collective:
        _wait_for_claim(stage, directory)
    if collective or dist.is_main():
        extra = build(directory)
    if dist.is_main():
        facts = extra.pop("facts", {}) | {"seconds": time.perf_counter() - began, "peak_memory_bytes": meter.peak()}
        record = {"stage": stage.name, "key": stage.key, "settings": stage.settings, "inputs": stage.inputs}
        write_manifest(directory, record | extra | {"facts": facts, "files": _files(directory, outputs)})
    return Artifact(label, directory, dist.wait_for_manifest(directory, stage.key), reused=False)


def _claim(stage: Stage, directory: Path) -> None:
    if _claimed_by(directory) != stage.key:
        if directory.exists():
            logger.info("%s: settings or inputs changed, made again", stage.name)
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        atomic_write(directory / KEY_FILE, json.dumps({"key": stage.key}).encode())
    (directory / MANIFEST).unlink(missing_ok=True)  # an output is gone: nobody may take this for finished


def _claimed_by(directory: Path) -> str | None:
    try:
        return str(json.loads((directory / KEY_FILE).read_text())["key"])
    except FileNotFoundError:  # not claimed, or rank 0 is just removing what another key left
        return None


def _wait_for_claim(stage: Stage, directory: Path) -> None:
    while _claimed_by(directory) != stage.key:
        time.sleep(0.1)
