"""Files that are there in full or not at all: written beside, synced, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pyprefopt.errors import ConfigError


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


_WRITING = {
    errno.ENOSPC: "make room on the disk and give the same command again",
    errno.EDQUOT: "make room within the quota and give the same command again",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) and give the same command again",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOTDIR: "choose a folder, not a file",
    errno.EEXIST: "choose a folder, not a file",
    errno.EISDIR: "choose a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_READING = {
    errno.EACCES: "ask for the right to read it, and to enter the folders that it is in",
    errno.EPERM: "ask for the right to read it, and to enter the folders that it is in",
    errno.ENOENT: "it is not there any more",
    errno.EISDIR: "give a file, not a folder",
    errno.ENAMETOOLONG: "give a path, which is shorter",
}


def explain_writing(error: Exception, path: str | Path) -> str:
    """Why a file or folder cannot be written, and what helps."""
    number = system_number(error)
    reason = os.strerror(number) if number else str(error)
    return f"{path}: {reason}; {_WRITING.get(number, 'look at the disk and give the same command again')}"


def explain_reading(error: Exception) -> str:
    """Why a file or folder cannot be read, and what helps."""
    number = system_number(error)
    return f"{os.strerror(number) if number else error}; {_READING.get(number, 'look at the disk')}"


def system_number(error: Exception) -> int:
    """The system's number of an error, which libraries tell in words; 0 where it has none."""
    told = re.search(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]", str(error))
    return getattr(error, "errno", None) or (int(told[1] or told[2]) if told else 0)


def check_name(path: str | Path) -> None:
    """ConfigError for a path that is not UTF-8: no message, manifest or table could hold it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ConfigError(f"a path must be UTF-8, got '{shown}'; rename the file or folder") from None


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


@dataclass(frozen=True)
class HashedFile:
    """A file with the hash of its content, and how it stood when it was read."""

    name: str
    sha256: str
    stamp: tuple[int, int, int]  # size, time and number

    @property
    def is_unchanged(self) -> bool:
        """Whether the file still stands as it did."""
        return self.stamp == _stamp(self.name)


def hash_files(names: Iterable[str]) -> list[HashedFile]:
    """Hash the content of each file."""
    stamps = {name: _stamp(name) for name in names}  # before the content: what is written meanwhile is seen
    return [HashedFile(name, sha256, stamps[name]) for name, sha256 in zip(stamps, sha256_files(stamps), strict=True)]


def _stamp(name: str) -> tuple[int, int, int]:
    try:
        found = os.stat(name)
    except FileNotFoundError:
        return -1, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino


def sha256_files(paths: Iterable[str | Path]) -> Iterator[str]:
    """`sha256_file` of each, empty where it is missing; in threads, as hashing gives the interpreter lock away."""
    with ThreadPoolExecutor() as pool:
        try:
            yield from pool.map(lambda path: sha256_file(path) if Path(path).is_file() else "", paths)
        finally:  # who asks for no more does not wait for the rest
            pool.shutdown(wait=False, cancel_futures=True)
