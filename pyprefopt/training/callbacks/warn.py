"""Warnings about what a training shows while it runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pyprefopt.training.callbacks.base import Callback

if TYPE_CHECKING:
    from pyprefopt.training.metrics import Metrics
    from pyprefopt.training.progress import Progress

logger = logging.getLogger("pyprefopt")


class NegativeWeights(Callback):
    """Says once that the method weights tokens negatively: such a token is pushed the wrong way."""

    def __init__(self, stage: str) -> None:
        self.stage, self._told = stage, False

    def on_step(self, progress: Progress, metrics: Metrics | None) -> None:
        """Look at the share of negative weights where metrics are due."""
        share = (metrics or {}).get("weights/negative", 0.0)
        if share > 0 and not self._told:
            self._told = True
            logger.warning(
                "%s: %.1f %% of the token weights of step %d are negative, which turns those tokens' gradient round; "
                "lower loss.alpha or the scale of the token rewards, or set loss.clamp or loss.shape sigmoid where the "
                "method has it (weights/negative in metrics.jsonl has the share of every step)",
                self.stage,
                100 * share,
                progress.step,
            )
