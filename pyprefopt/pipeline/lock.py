"""One run an output folder: what keeps a second run, or a worker left over from one, out."""

from __future__ import annotations

from pathlib import Path

from pyprefopt import ranks
from pyprefopt.storage.locks import LOCK, FolderLock


class RunLock(FolderLock):
    """Holds `output_dir/.lock` (`.lock-R` on rank R) as long as the process lives: no second run, no orphaned worker.

    >>> with RunLock("runs/sepo"):  # doctest: +SKIP
    ...     train()
    """

    def __init__(self, output_dir: str | Path, *, setting: str = "output_dir") -> None:
        remedy = (
            f"that is another run, or a worker left over from one: wait for it, end it, or choose another {setting}"
        )
        name = LOCK if ranks.is_main() else f"{LOCK}-{ranks.rank()}"
        super().__init__(output_dir, name=name, setting=setting, remedy=remedy)
