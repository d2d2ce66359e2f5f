"""A folder that is made in steps: whose it is, whether it is whole, and whether it is as it was written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyprefopt.errors import ArtifactError
from pyprefopt.storage.files import (
    check_name,
    explain_reading,
    explaining,
    remove_leftovers,
    sha256_files,
    sync_files,
    write_json,
)

MANIFEST = "manifest.json"


class Folder:
    """A folder is whole while its manifest is there: the manifest is written last and removed first.

    Until then `pending` names the key that it is made for: what a killed process left is for that key alone.
    """

    pending_file = "key.json"

    def __init__(self, path: str | Path) -> None:
        check_name(path)
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.path / MANIFEST).exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest; an ArtifactError with the remedy where it is missing or broken."""
        found = self.find_manifest()
        if found is None:
            raise ArtifactError(f"{self} is not a finished artifact: {MANIFEST} is missing; run its stage again")
        return found

    def find_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None where it is missing; ArtifactError where it is broken."""
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {explain_reading(error)}") from None
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is not valid JSON ({error}); delete {self} and run its stage again") from None
        if not isinstance(manifest, dict):
            raise ArtifactError(f"{path} must hold an object; delete {self} and run its stage again")
        return manifest

    def made_for(self, key: str) -> dict[str, Any] | None:
        """The manifest, where the folder is finished and was made for this key."""
        manifest = self.find_manifest()
        return manifest if manifest is not None and manifest.get("key") == key else None

    @property
    def pending(self) -> dict[str, Any]:
        """For whom the folder is, or was, made; empty where nobody has begun it, or it is just being cleared."""
        try:
            return dict(json.loads((self.path / self.pending_file).read_bytes()))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, TypeError, RecursionError):
            return {}

    def begin(self, pending: Mapping[str, Any]) -> bool:
        """Take the folder for `pending["key"]`: what this key has left stays, what another has left goes.

        Returns whether another had left something.
        """
        left = self.pending
        if left.get("key") != pending["key"]:
            self.clear()
        self.reopen()
        if left != pending:
            write_json(self.path / self.pending_file, dict(pending))
        return left.get("key") not in (None, pending["key"])

    def reopen(self) -> None:
        """Take the manifest away, and what killed writers left; the folder is made where it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)
        remove_leftovers(self.path)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest: nothing is missing any more."""
        write_json(self.path / MANIFEST, dict(manifest))

    def remove(self) -> None:
        """Remove the folder, its manifest first: what a kill on the way leaves is not whole.

        Of a link the link alone goes, and a file in its place goes.
        """
        if self.path.is_symlink() or self.path.is_file():
            self.path.unlink()
            return
        if not (self.path / MANIFEST).is_dir():
            (self.path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def clear(self) -> None:
        """Begin with an empty folder."""
        self.remove()
        self.path.mkdir(parents=True)

    def hashes(self) -> dict[str, str]:
        """Relative name -> SHA-256 of every file but the manifest."""
        names = self._names()
        return dict(zip(names, sha256_files(self.path / name for name in names), strict=True))

    def altered(self, files: Mapping[str, str], *, alone: bool = False) -> str | None:
        """Name of the first of `files` (name -> SHA-256) that is missing or not as it was written.

        alone: a file that is not among them is named as well.
        """
        names = [*files, *(name for name in (self._names() if alone else ()) if name not in files)]
        hashes = sha256_files(self.path / name for name in names)
        return next((name for name, sha256 in zip(names, hashes, strict=True) if files.get(name) != sha256), None)

    def _names(self) -> list[str]:
        files = (file for file in self.path.rglob("*") if file.is_file() and file != self.path / MANIFEST)
        return sorted(str(file.relative_to(self.path)) for file in files)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that takes its place, in one step, where the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.parent / f".{target.name}.{state}-{os.getpid()}" for state in ("partial", "old"))
    for left in [*target.parent.glob(f".{target.name}.partial-*"), *target.parent.glob(f".{target.name}.old-*")]:
        shutil.rmtree(left, ignore_errors=True)  # by a killed process
    partial.mkdir()
    try:
        with explaining(target):
            yield partial
            sync_files(partial)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
