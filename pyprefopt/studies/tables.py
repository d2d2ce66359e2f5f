"""The tables of a study, tidy: a line an observation, a column a variable."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from safetensors import safe_open

from pyprefopt.data.store.segments import KINDS, SegmentStore, ValueStore
from pyprefopt.data.tokenization.identical_pairs import IDENTICAL
from pyprefopt.stages.stage import Artifact

if TYPE_CHECKING:
    import polars as pl

Row = dict[str, Any]

# Column of `cells.csv` -> (stage, path in its facts). A stage that a cell has not is null.
METRICS: dict[str, tuple[str, ...]] = {
    "ranking_accuracy_before": ("policy", "eval_before", "eval_ranking_accuracy"),
    "ranking_accuracy": ("policy", "eval_after", "eval_ranking_accuracy"),
    "reward_accuracy": ("policy", "eval_after", "eval_rewards/accuracies"),
    "reward_margin": ("policy", "eval_after", "eval_rewards/margins"),
    "ranking_accuracy_cut": ("policy", "eval_after", "eval_cut_ranking_accuracy"),
    "reward_accuracy_cut": ("policy", "eval_after", "eval_cut_rewards/accuracies"),
    "reward_margin_cut": ("policy", "eval_after", "eval_cut_rewards/margins"),
    "train_pairs": ("data", "train", "rows"),
    "train_pairs_equal": ("data", "train", IDENTICAL),
    "test_pairs_equal": ("data", "eval_cut", IDENTICAL),
    "logps_chosen": ("policy", "eval_after", "eval_logps/chosen"),
    "logps_rejected": ("policy", "eval_after", "eval_logps/rejected"),
    "eval_loss": ("policy", "eval_after", "eval_loss"),
    "steps": ("policy", "steps"),
    "converged": ("policy", "converged"),
    "moving_loss": ("policy", "moving_loss"),
    "seconds": ("policy", "seconds"),
    "oracle_ranking_accuracy": ("oracle", "eval_after", "eval_ranking_accuracy"),
    "oracle_reward_accuracy": ("oracle", "eval_after", "eval_rewards/accuracies"),
    "score_chosen": ("scores", "chosen", "mean_score"),
    "score_rejected": ("scores", "rejected", "mean_score"),
    "token_reward_chosen": ("rewards", "chosen", "mean_reward"),
    "token_reward_rejected": ("rewards", "rejected", "mean_reward"),
    "selected_chosen": ("selection", "chosen", "selected_share"),
    "selected_rejected": ("selection", "rejected", "selected_share"),
    "recall_chosen": ("selection", "chosen", "planted_recall"),
    "recall_rejected": ("selection", "rejected", "planted_recall"),
}
_NOTHING: Mapping[str, float] = MappingProxyType({})
BINS = 60  # of a histogram of scores

# Student's t for two-sided 95 % intervals, by degrees of freedom 1 to 30; with more, the last one (a little too wide).
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def cell_row(cell: Mapping[str, Any], made: Mapping[str, Artifact], measured: Mapping[str, float] = _NOTHING) -> Row:
    """What was varied, what came out, what was measured besides, and where the policy is."""
    row: Row = dict(cell)
    for column, (stage, *path) in METRICS.items():
        value: Any = made[stage].facts if stage in made else None
        for name in path:
            value = value.get(name) if value is not None else None
        row[column] = value
    row |= measured
    model = made["oracle"].directory / "model" if "oracle" in made else None
    row["oracle_parameters"] = count_parameters(model) if model is not None else None
    row["policy"] = str(made["policy"].directory / "model")
    return row


def curve_rows(cell: Mapping[str, Any], policy: Artifact) -> list[Row]:
    """The policy's training loss by step."""
    lines = [json.loads(line) for line in (policy.directory / "metrics.jsonl").read_text().splitlines()]
    return [{**cell, "step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]


def score_rows(cell: Mapping[str, Any], data: Artifact, scores: Artifact) -> list[Row]:
    """Histograms of the token scores (nats) of chosen and rejected responses of the training set.

    Bins go from the 0.1 to the 99.9 percentile of both sides together; `density` is a share per nat, so the bars of a
    side hold its share of tokens inside that range.
    """
    store = SegmentStore.open(data.directory / "train")
    lists = ValueStore.open(scores.directory / "train").check(store).values
    values = np.asarray(pc.list_flatten(lists).to_numpy(zero_copy_only=False))
    kinds = np.repeat(store.kinds, np.diff(store.response_offsets))
    low, high = np.quantile(values[store.response_mask], (0.001, 0.999)).tolist()
    edges = np.linspace(low, high, BINS + 1)
    rows: list[Row] = []
    for side in ("chosen", "rejected"):
        own = values[(kinds == KINDS.index(side)) & store.response_mask]
        density = np.histogram(own, edges)[0] / (len(own) * np.diff(edges).clip(min=1e-12))
        bars = zip(edges[:-1].tolist(), edges[1:].tolist(), density.tolist(), strict=True)
        rows += [
            {**cell, "side": side, "left": left, "right": right, "density": height} for left, right, height in bars
        ]
    return rows


def count_parameters(model: Path) -> int:
    """Numbers in a checkpoint's tensors, from the files' headers."""
    total = 0
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def summarize_cells(cells: Sequence[Row], points: Sequence[str]) -> list[Row]:
    """Mean and 95 % interval of every metric at every point of the grid (the columns `points`), over its repeats.

    One repeat has no interval: its bounds are null. `n` counts the values that there are.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    measured = [name for name in cells[0] if name.startswith("rewardbench")] if cells else []
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in points), []).append(cell)
    rows = []
    for point, members in groups.items():
        for metric in (*METRICS, *measured):
            found = [float(member[metric]) for member in members if member[metric] is not None]
            if found:
                mean, low, high = interval(found)
                where = dict(zip(points, point, strict=True))
                rows.append({**where, "metric": metric, "mean": mean, "low": low, "high": high, "n": len(found)})
    return rows


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, and the bounds of its two-sided 95 % interval by Student's t; None where there is one value."""
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return mean, None, None
    half = T95[min(count - 1, len(T95)) - 1] * statistics.stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def to_frame(rows: Sequence[Row]) -> pl.DataFrame:
    """A frame of rows with the same columns."""
    import polars as pl

    return pl.DataFrame(list(rows), infer_schema_length=None)
