"""Peak memory of a stage or a training."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any


def reset_peak_memory() -> None:
    """Begin to measure anew, where the machine can: Linux, and a GPU that is in use."""
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes used since the last reset: of this rank's GPU where it was used, else resident memory."""
    if (cuda := _cuda()) is not None and (on_device := int(cuda.max_memory_allocated())):
        return on_device
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> Any:
    """`torch.cuda` where torch is loaded and a GPU is there; torch is not loaded for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
