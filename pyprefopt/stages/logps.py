"""Stage `logps`: the log-prob that a model gives each token, once; the ranks score parts in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyprefopt.data.store.segments import SegmentStore, ValueStore, scatter_values
from pyprefopt.errors import ArtifactError
from pyprefopt.modeling.logps import LogpsModel, score_logps
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.models import Source, open_model, packing_for
from pyprefopt.stages.scoring.parts import COLUMNS, Columns, compute_parts, remove_parts, with_room_for
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.training.engine import init_distributed
from pyprefopt.types import PackedBatch


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
        packing = packing_for(model, self.data, runtime)
        if "longest_row" in self.data.manifest:  # tokens of the model's own, whose number no setting bounds
            runtime = with_room_for(runtime, self.data, packing)
        for split, store in open_splits(self.data):
            if not _scored(directory / split, store, self.key):
                self._score(model, store, directory, split, runtime, packing)
        return {}

    def _score(
        self, model: LogpsModel, store: SegmentStore, directory: Path, split: str, runtime: RunConfig,
        packing: dict[str, Any],
    ) -> None:  # fmt: skip
        def compute(batches: Sequence[PackedBatch]) -> Columns:
            return score_part(model, batches)

        found = compute_parts(compute, store, directory, split, runtime, packing, title=self.title)
        if found is not None:
            ValueStore.write(directory / split, store, scatter_values(store, *found), key=self.key)
            remove_parts(directory, split)


def _scored(directory: Path, store: SegmentStore, key: str) -> bool:
    """Whether a killed run has finished this split, for these tokens and this key."""
    try:
        ValueStore.open(directory, verify=True).check(store, key=key)
    except ArtifactError:
        return False
    return True


def score_part(model: LogpsModel, batches: Sequence[PackedBatch]) -> Columns:
    """Log-probs of a part: which lines of the segments, how many tokens each, the values one after another."""
    device = next(model.parameters()).device
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for batch in batches:
        columns["lines"].append(np.asarray(batch.response_line))
        columns["lengths"].append(np.asarray(batch.scored_length).astype(np.int64))
        columns["values"].append(score_logps(model, batch.to(device)).float().cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in columns.items()}
