"""Files that are there in full or not at all: written beside, synced, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pyprefopt.errors import ArtifactError, ConfigError, PyprefoptError


def atomic_write(path: str | Path, content: bytes | memoryview | Callable[[BinaryIO], object]) -> Path:
    """Write `content`, or what the callable writes to the open file, so that `path` never holds a part of it.

    The folder is made where it is missing. When writing fails, or the process is killed, `path` is as it was before
    (a killed process leaves a hidden `*.tmp` file, which `remove_leftovers` clears away).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with _naming(path), temporary.open("wb") as file:
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


def append(path: str | Path, content: bytes) -> None:
    """Append all of `content` to a file, or nothing; the file and its folder are made where they are missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path), path.open("ab", buffering=0) as file:
        before, rest = file.seek(0, os.SEEK_END), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(before)
            raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """While inside, errors of the disk have the file's name: a write to an open file does not know it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
    if number == errno.ENOSPC:
        reason += f", {show_bytes(free_bytes(path))} are free"
    return f"{path}: {reason}; {_WRITING.get(number, 'look at the disk and give the same command again')}"


@contextmanager
def explaining(path: str | Path) -> Iterator[None]:
    """While inside, what finds no room on the disk is an ArtifactError with the reason and the remedy.

    path: what is written, where the error does not name it.
    """
    try:
        yield
    except PyprefoptError:
        raise
    except Exception as error:  # libraries have errors of their own
        if system_number(error) not in NO_ROOM:
            raise
        raise ArtifactError(explain_writing(error, getattr(error, "filename", None) or path)) from error


def free_bytes(path: str | Path) -> int:
    """Bytes that can be written on the disk that `path` is on, or will be on."""
    return shutil.disk_usage(nearest(path)).free


def nearest(path: str | Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = Path(path).absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def used_bytes(directory: Path) -> int:
    """Bytes of all files below a folder; 0 where it is missing."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # it is just being removed
            total += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
    return total


def show_bytes(size: float) -> str:
    """A size as people write it.

    >>> show_bytes(999), show_bytes(18_901_660), show_bytes(3 * 2**30)
    ('999 bytes', '18 MiB', '3 GiB')
    """
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 100 * unit else f"{size / unit:,.0f} {name}"
    return f"{size:,.0f} bytes"


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


def stamp_files(names: Iterable[str]) -> list[HashedFile]:
    """The files by size, time and number, where nobody keeps what is made of their content."""
    return [HashedFile(name, content_hash(_stamp(name)), _stamp(name)) for name in names]


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


def copy_into(source: str | Path, folder: Path) -> None:
    """Copy a file, or a folder with what it holds, into another folder under its own name."""
    copy_one = shutil.copytree if Path(source).is_dir() else shutil.copyfile
    copy_one(source, folder / Path(source).name)
