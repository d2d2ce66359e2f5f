"""Runs a study: every point of its grid, each once, then the tables and plots over them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.errors import ArtifactError
from pyprefopt.log import run_log
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.room import check_room
from pyprefopt.pipeline.summary import log_embedded
from pyprefopt.plots import require_matplotlib, save
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import as_config, to_yaml, with_settings
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import atomic_write, explaining
from pyprefopt.studies.catalog import STUDIES
from pyprefopt.studies.study import Cell, Values
from pyprefopt.studies.tables import cell_row, curve_rows, score_rows, summarize_cells, to_frame
from pyprefopt.tables import show_table, write_csv

if TYPE_CHECKING:
    import polars as pl

SHOWN = (  # on the terminal
    "ranking_accuracy_before", "ranking_accuracy", "reward_accuracy", "reward_margin", "steps", "train_pairs_equal",
)  # fmt: skip

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True)
class StudyResult:
    """What a study leaves behind.

    The tables are also there as `NAME.csv`, the figures as `NAME.png`.
    """

    output_dir: Path  # the study's folder; its artifacts are in `stages/`
    cells: pl.DataFrame  # a line a run: what was varied, and what came out
    summary: pl.DataFrame  # a line a point of the grid and metric: mean, and its 95 % interval over the repeats
    curves: pl.DataFrame  # a line a run and step: training loss
    scores: pl.DataFrame  # histograms of the token scores or rewards of each run that has some
    further: Mapping[str, pl.DataFrame] = field(default_factory=dict)  # the study's own tables, by name


def run_study(
    name: str,
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any],
    *,
    values: Mapping[str, Sequence[Any]] | None = None,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    plots: bool = True,
    options: Mapping[str, Any] | None = None,
) -> StudyResult:
    """Run every cell of a study that is not done yet.

    Rank 0 writes `config.yaml`, `cells.csv`, `summary.csv`, `curves.csv`, `scores.csv` where runs have scores, and the
    figures.

    Args:
        name: of `STUDIES`.
        config: what all runs have in common, in any way that `pyprefopt.train` takes; `output_dir` is the study's
            folder.
        values: option of an axis (`alphas`) -> its values; other axes take their grid.
        quick: a few points of each axis instead of the whole grid.
        seeds: of weights, order and hold-out, one after another; None: the config's.
        plots: figures as PNG; needs matplotlib.
        options: what a study takes besides, by the names of the command line: of `truncation` common_pairs and
            rewardbench.

    Returns:
        The study's folder, and its tables as Polars frames.

    Raises:
        ConfigError: settings that break a rule in any of the cells, an axis that the study does not have, or plots
            without matplotlib; raised before the first cell is run.
        ArtifactError: another run writes to the study's folder.
        DataError, TrainingError: as in `pyprefopt.train`.

    Example:
        >>> config = configure(method="sepo", output_dir="runs/ratios")  # doctest: +SKIP
        >>> run_study("ratios", config, quick=True, plots=False).summary  # doctest: +SKIP
    """
    config = as_config(config)
    log_embedded(config)
    study, root = STUDIES[name], Path(config.output_dir)
    if plots:
        require_matplotlib("plots false for tables alone")
    options = options or {}
    study.check(config, options)
    cells = study.grid(config, values or {}, quick=quick, seeds=seeds or [config.seed])
    runs = [with_settings(config, study.settings_at(cell)) for cell in cells]
    ranks.set_threads(config.threads)
    other = next((name for name in ("accuracy.json", "kl.json", "rewardbench.csv") if (root / name).exists()), None)
    if other is not None:
        raise ArtifactError(f"output_dir {root} holds an evaluation ({other}); choose another output_dir")
    with RunLock(root), run_log(root, config.log_level), explaining(root):
        if ranks.is_main():
            atomic_write(root / "config.yaml", to_yaml(config).encode())
        rows: dict[str, list[dict[str, Any]]] = {"cells": [], "curves": [], "scores": []}
        done = []
        for number, (cell, run) in enumerate(zip(cells, runs, strict=True), start=1):
            logger.info("study %s: run %d of %d: %s", name, number, len(cells), _format_cell(cell))
            made = study.run(partial(_open_pipeline, root), run, cell)
            done.append(Cell(cell, made, study.measure(root, run, made, options)))
            _collect(rows, done[-1])
            _drop_checkpoints(made)
        points = [axis.column for axis in study.axes if axis.column not in study.repeats]
        frames = {table: to_frame(found) for table, found in rows.items()}
        summary, further = to_frame(summarize_cells(rows["cells"], points)), study.tables(done, options)
        result = StudyResult(root, summary=summary, further=further, **frames)
        if ranks.is_main():
            _write(name, config, result, plots=plots)
    return result


def _open_pipeline(root: Path, config: RunConfig) -> Pipeline:
    pipeline = Pipeline(config, root / "stages")
    check_room(pipeline)
    return pipeline


def _format_cell(cell: Values) -> str:
    return ", ".join(f"{column} {value}" for column, value in cell.items())


def _collect(rows: dict[str, list[dict[str, Any]]], cell: Cell) -> None:
    made, measured = cell.made, {name: value for name, value in cell.measured.items() if isinstance(value, float)}
    rows["cells"].append(cell_row(cell.values, made, measured))
    rows["curves"] += curve_rows(cell.values, made["policy"])
    values = made.get("scores") or made.get("rewards")
    if values is not None:
        rows["scores"] += score_rows(cell.values, made["data"], values)


def _drop_checkpoints(made: Mapping[str, Artifact]) -> None:
    """Remove checkpoints, which a finished training does not need: a grid of runs would keep several of each."""
    if ranks.is_main():
        for artifact in made.values():
            shutil.rmtree(artifact.directory / "checkpoints", ignore_errors=True)


def _write(name: str, config: RunConfig, result: StudyResult, *, plots: bool) -> None:
    own = {table: getattr(result, table) for table in ("cells", "summary", "curves", "scores")}
    for table, frame in {**own, **result.further}.items():
        if not frame.is_empty():
            write_csv(frame, result.output_dir / f"{table}.csv")
    if plots:
        from pyprefopt.studies.figures import FIGURES

        figures = FIGURES[name](
            cells=result.cells, summary=result.summary, curves=result.curves, scores=result.scores,
            further=result.further, window=config.convergence_window, until=config.until_converged,
        )  # fmt: skip
        for title, figure in figures.items():
            save(figure, result.output_dir / title, ("png",))


def format_summary(result: StudyResult) -> str:
    """The headline metrics at every point of the grid, and the study's own tables, for a terminal."""
    import polars as pl

    own = [f"\n{name}\n{show_table(_rounded(table))}" for name, table in result.further.items()]
    points = [name for name in result.summary.columns if name not in ("metric", "mean", "low", "high", "n")]
    shown = result.summary.filter(pl.col("metric").is_in(SHOWN)).with_columns(
        value=pl.format(
            "{}{}",
            pl.col("mean").map_elements("{:.4g}".format, pl.String),
            pl.when(pl.col("low").is_null())
            .then(pl.lit(""))
            .otherwise(pl.format(" ±{}", (pl.col("mean") - pl.col("low")).round_sig_figs(2))),
        )
    )
    table = shown.pivot("metric", index=points, values="value")
    return "\n".join([show_table(table), *own])


def _rounded(table: pl.DataFrame) -> pl.DataFrame:
    """Numbers in few digits, an interval beside what it is of; of a benchmark no subsets."""
    import polars as pl

    table = table.filter(pl.col("kind") != "subset") if "kind" in table.columns else table
    shown = table.with_columns(pl.col(pl.Float64).round(4))
    for name, low, high in (
        ("accuracy", "low", "high"),
        ("score", "low", "high"),
        ("change", "change_low", "change_high"),
    ):
        if {name, low, high} <= set(shown.columns):
            shown = shown.with_columns(pl.format("{} ({} to {})", name, low, high).alias(name)).drop(low, high)
    return shown
