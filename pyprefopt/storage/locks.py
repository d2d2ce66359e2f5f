"""One writer a folder: an advisory lock that the kernel gives back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Self, TextIO

from pyprefopt.errors import ArtifactError, ConfigError

LOCK = ".lock"

POLL = 0.5  # seconds between two looks at a lock that another holds

logger = logging.getLogger("pyprefopt")


class FolderLock:
    """Holds `directory/.lock`, or the lock `name`, while the process lives; the folder is made where it is missing.

    wait: where another holds it, wait until that one ends, and log once for whom; else ArtifactError.

    >>> with FolderLock("prepared"):  # doctest: +SKIP
    ...     write()
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        name: str = LOCK,
        setting: str = "out",  # what the user calls the folder
        remedy: str = "wait for it, end it, or choose another folder",
        wait: bool = False,
    ) -> None:
        self.path, self.setting, self.remedy, self.wait = Path(directory) / name, setting, remedy, wait
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        file = self._open()
        warned = False
        while not _taken(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not self.wait:
                file.close()
                raise ArtifactError(f"{self.path.parent} is being written by {holder}; {self.remedy}")
            if not warned:
                logger.info("%s is held by %s; waiting for it", self.path, holder)
                warned = True
            time.sleep(POLL)
        self._file = file
        with suppress(OSError):  # on a full disk the lock holds without its holder's name
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        return self

    def _open(self) -> TextIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open("a+")
        except OSError as error:
            raise ConfigError(
                f"{self.setting} must be a folder that can be written, got '{self.path.parent}' ({error.strerror}: "
                f"{error.filename}); choose another --{self.setting}"
            ) from error

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.ftruncate(self._file.fileno(), 0)  # a finished folder does not depend on who wrote it
            self._file.close()  # gives the lock back; the file stays, so that no two processes lock different inodes
            self._file = None


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
