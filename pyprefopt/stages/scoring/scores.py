"""Stage `response_scores`: the score that a reward model gives each response, once; ranks score parts in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import DataError
from pyprefopt.modeling.reward_head import RewardModel, score_responses
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.models import Source, open_scorer, packing_for
from pyprefopt.stages.scoring.parts import Columns, compute_parts, join_columns, remove_parts, with_room_for
from pyprefopt.stages.scoring.texts import SPLIT
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.training.engine import init_distributed
from pyprefopt.types import PackedBatch

if TYPE_CHECKING:
    import polars as pl

FILE = Path("scores") / "scores.parquet"


@dataclass(frozen=True, kw_only=True)
class ResponseScores(Stage):
    """Scores of one reward model: keyed by tokens, weights and precision."""

    name: str = "response_scores"
    data: Artifact  # of `Texts`, in the model's tokens
    model: Source
    dtype: str

    collective = True

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Write `row`, `segment` and `score` of every response.

        Raises:
            ConfigError: the model has no trained head of one output. DataError: a score is not finite.
        """
        if not (directory / FILE).exists():
            model = open_scorer(self.model, self.data, runtime, dtype=self.dtype).to(init_distributed())
            packing = packing_for(model, self.data, runtime) | {"last_token": True}
            runtime = with_room_for(runtime, self.data, packing)
            store = SegmentStore.open(self.data.directory / SPLIT)

            def compute(batches: Sequence[PackedBatch]) -> Columns:
                return score_part(model, batches)

            found = compute_parts(compute, store, directory, SPLIT, runtime, packing, title=self.title)
            if found is not None:
                _write(store, found["lines"], found["values"], directory / FILE)
                remove_parts(directory, SPLIT)
        return {}


def score_part(model: RewardModel, batches: Sequence[PackedBatch]) -> Columns:
    """Scores of a part: which lines of the segments, and one value of each."""
    device = next(model.parameters()).device
    return join_columns(
        [
            {
                "lines": np.asarray(batch.response_line),
                "lengths": np.ones(len(batch.response_line), np.int64),
                "values": score_responses(model, batch.to(device)).float().cpu().numpy(),
            }
            for batch in batches
        ]
    )


def read_scores(artifact: Artifact) -> pl.DataFrame:
    """`row` u64, `segment` u16 (from 1) and `score` f32 of every response, in their order."""
    import polars as pl

    return pl.read_parquet(artifact.directory / FILE)


def summed_logps(data: Artifact, logps: Artifact) -> pl.DataFrame:
    """The same of a language model: the sum of each response's log-probs, in nats, as f64."""
    import polars as pl

    store = SegmentStore.open(data.directory / SPLIT)
    values = ValueStore.open(logps.directory / SPLIT).check(store).values
    lines = pl.DataFrame(store.table.select(["row", "segment"])).with_columns(pl.from_arrow(values).alias("values"))  # type: ignore[union-attr]
    total = pl.col("values").list.eval(pl.element().cast(pl.Float64)).list.sum()
    return lines.filter(pl.col("segment") > 0).select("row", "segment", score=total)


def _write(store: SegmentStore, lines: np.ndarray, values: np.ndarray, target: Path) -> None:
    import polars as pl

    scores = np.full(store.num_lines, np.nan)
    scores[lines[lines >= 0]] = values[lines >= 0]
    frame = pl.DataFrame(store.table.select(["row", "segment"])).with_columns(score=pl.Series(scores).cast(pl.Float32))
    frame = frame.filter(pl.col("segment") > 0)
    bad = frame.filter(~pl.col("score").is_finite()).head(1)
    if bad.height:
        row, segment, score = bad.row(0)
        raise DataError(
            f"row {row}, response {segment}: the score must be finite, got {score}; the model's weights or its dtype "
            "may not do for so long a text"
        )
    target.parent.mkdir(exist_ok=True)
    atomic_write(target, frame.write_parquet)
