"""Files that are there in full or not at all: written beside, synced, renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO


def atomic_write(path: str | Path, content: bytes | memoryview | Callable[[BinaryIO], object]) -> Path:
    """Write `content`, or what the callable writes to the open file, so that `path` never holds a part of it.

    The folder is made where it is missing. When writing fails, or the process is killed, `path` is as it was before
    (a killed process leaves a hidden `*.tmp` file, which `remove_leftovers` clears away).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return path


def sync(path: Path) -> None:
    """Make a file's content, or the renames in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(directory: Path) -> None:
    """Make every file below `directory` durable."""
    for path in directory.rglob("*"):
        if path.is_file():
            sync(path)


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files of killed writers."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: dict[str, Any]) -> Path:
    """Write `value` as JSON with sorted keys."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return atomic_write(path, (text + "\n").encode())


def content_hash(value: object) -> str:
    """Hex SHA-256 of a JSON-like value; the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[str | Path]) -> Iterator[str]:
    """`sha256_file` of each, empty where it is missing; in threads, as hashing gives the interpreter lock away."""
    with ThreadPoolExecutor() as pool:
        try:
            yield from pool.map(lambda path: sha256_file(path) if Path(path).is_file() else "", paths)
        finally:  # who asks for no more does not wait for the rest
            pool.shutdown(wait=False, cancel_futures=True)


def copy_into(source: str | Path, folder: Path) -> None:
    """Copy a file, or a folder with what it holds, into another folder under its own name."""
    copy_one = shutil.copytree if Path(source).is_dir() else shutil.copyfile
    copy_one(source, folder / Path(source).name)
