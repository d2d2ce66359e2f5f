"""Peak memory of a stage."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any


class Meter:
    """Peak resident memory since birth, in bytes (GPU: peak allocated, where a CUDA device is in use).

    Linux lets a process reset its high-water mark; elsewhere the peak is that of the whole process so far.
    """

    def __init__(self) -> None:
        self._device = _cuda()
        if self._device is not None:
            self._device.reset_peak_memory_stats()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes."""
        if self._device is not None:
            return int(self._device.max_memory_allocated())
        status = Path("/proc/self/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> Any:
    """`torch.cuda` where torch is loaded and a GPU is there; torch is not loaded for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
