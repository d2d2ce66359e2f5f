"""What an attacker would put in the place of a file: a pickle that leaves a mark where it is read."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch


class Evil:
    """Runs as it is unpickled: the file `mark` is there then."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def write_evil(path: Path, mark: Path, kind: str = "torch") -> None:
    """Write the pickle as torch.save does (`zip`: in its present format, `torch`: in that before), or bare."""
    if kind == "bare":
        path.write_bytes(pickle.dumps(Evil(mark)))
    else:
        torch.save({"module": Evil(mark)}, path, _use_new_zipfile_serialization=kind == "zip")
