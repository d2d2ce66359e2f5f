"""What models give each token of a run's responses, as stores of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyprefopt.data.store.segments import SegmentStore, ValueStore, scatter_values
from pyprefopt.errors import ArtifactError
from pyprefopt.modeling.packed_model import PackedModel
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.models import packing_for
from pyprefopt.stages.scoring.parts import Columns, compute_parts, join_columns, remove_parts, with_room_for
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.types import PackedBatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Score = Callable[[PackedBatch], "Mapping[str, Tensor]"]


def score_tokens(
    stage: Stage, data: Artifact, models: Sequence[PackedModel], score: Score, directory: Path, runtime: RunConfig
) -> None:
    """Write what `score` gives each token of `train` and `eval`, as stores of values.

    Args:
        stage: whose key the stores get.
        data: the tokens.
        models: that score; documents are laid out as all of them can read them.
        score: a batch on the models' device -> name -> [M]. The values named `values` are in the folder SPLIT, others
            in SPLIT_NAME.
        directory: the stage's folder.
        runtime: the run's settings.
    """
    packings = [packing_for(model, data, runtime) for model in models]
    packing = max(packings, key=lambda options: (options["whole"], options["layout"] == "separate"))
    if "longest_row" in data.manifest:  # tokens of the model's own, whose number no setting bounds
        runtime = with_room_for(runtime, data, packing)
    device = next(models[0].parameters()).device

    def compute(batches: Sequence[PackedBatch]) -> Columns:
        return score_part(score, device, batches)

    for split, store in open_splits(data):
        if _scored(directory / split, store, stage.key):
            continue
        found = compute_parts(compute, store, directory, split, runtime, packing, title=stage.title)
        if found is None:
            continue
        lines, lengths = found.pop("lines"), found.pop("lengths")
        for name in sorted(found, key="values".__eq__):  # the folder by which a split is known to be done comes last
            values = scatter_values(store, lines, lengths, found[name])
            ValueStore.write(
                directory / (split if name == "values" else f"{split}_{name}"), store, values, key=stage.key
            )
        remove_parts(directory, split)


def _scored(directory: Path, store: SegmentStore, key: str) -> bool:
    """Whether a killed run has finished this split, for these tokens and this key."""
    try:
        ValueStore.open(directory, verify=True).check(store, key=key)
    except ArtifactError:
        return False
    return True


def score_part(score: Score, device: torch.device, batches: Sequence[PackedBatch]) -> Columns:
    """The values of a part: which lines of the segments, how many tokens each, and what was scored, in one row."""
    return join_columns(
        [
            {
                "lines": np.asarray(batch.response_line),
                "lengths": np.asarray(batch.scored_length).astype(np.int64),
                **{name: values.float().cpu().numpy() for name, values in score(batch.to(device)).items()},
            }
            for batch in batches
        ]
    )
