"""Stage `logps`: the log-prob that a model gives each token, once; the ranks score parts in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprefopt.modeling.logps import score_logps
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.models import Source, open_model
from pyprefopt.stages.scoring.tokens import score_tokens
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.training.engine import init_distributed


@dataclass(frozen=True, kw_only=True)
class Logps(Stage):
    """Log-probs of one model: keyed by tokens, weights and precision, never by a label or a time."""

    name: str = "logps"
    data: Artifact  # the run's tokens, or a model's own
    model: Source
    dtype: str = "float32"

    collective = True

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Per-token log-probs of every response of `train` and `eval`."""
        model = open_model(self.model, self.data, runtime, dtype=self.dtype).to(init_distributed())
        score_tokens(self, self.data, [model], lambda batch: {"values": score_logps(model, batch)}, directory, runtime)
        return {}
