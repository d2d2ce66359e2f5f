"""Side work of a training: what watches it without changing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyprefopt.training.callbacks.base import Callback
from pyprefopt.training.callbacks.files import MetricsFile, TensorBoard
from pyprefopt.training.callbacks.screen import ProgressBar
from pyprefopt.training.callbacks.warn import NegativeWeights

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Callback", "MetricsFile", "NegativeWeights", "ProgressBar", "TensorBoard", "default_callbacks"]


def default_callbacks(stage: str, output_dir: Path) -> list[Callback]:
    """What every training has on rank 0; none on the others."""
    from pyprefopt.ranks import is_main

    if not is_main():
        return []
    return [
        MetricsFile(stage, output_dir / "metrics.jsonl"),
        TensorBoard(output_dir / "tensorboard" / stage),
        ProgressBar(stage),
        NegativeWeights(stage),
    ]
