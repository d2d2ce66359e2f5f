"""One writer a folder: an advisory lock that the kernel gives back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import Self, TextIO

from pyprefopt.errors import ArtifactError

LOCK = ".lock"

POLL = 0.5  # seconds between two looks at a lock that another holds

logger = logging.getLogger("pyprefopt")


class FolderLock:
    """Holds `directory/.lock`, or the lock `name`, while the process lives; the folder is made where it is missing.

    wait: where another holds it, wait until that one ends, and say once for whom; else ArtifactError.

    >>> with FolderLock("prepared"):  # doctest: +SKIP
    ...     write()
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        name: str = LOCK,
        remedy: str = "wait for it, end it, or choose another folder",
        wait: bool = False,
    ) -> None:
        self.path, self.remedy, self.wait = Path(directory) / name, remedy, wait
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        told = False
        while not _taken(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not self.wait:
                file.close()
                raise ArtifactError(f"{self.path.parent} is being written by {holder}; {self.remedy}")
            if not told:
                logger.info("%s is held by %s; waiting for it", self.path, holder)
                told = True
            time.sleep(POLL)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.truncate(0)  # a finished folder does not depend on who wrote it
            self._file.close()  # gives the lock back; the file stays, so that no two processes lock different inodes
            self._file = None


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
