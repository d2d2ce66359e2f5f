"""Runs a study: every point of its grid, each once, then the tables and plots over them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.errors import ConfigError, check, did_you_mean
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
from pyprefopt.storage.hub import EMBEDDED_MODEL
from pyprefopt.studies.catalog import STUDIES, Study, Values, check_study
from pyprefopt.studies.tables import cell_row, curve_rows, score_rows, summarize_cells, to_frame
from pyprefopt.tables import show_table, write_csv

if TYPE_CHECKING:
    import polars as pl

SHOWN = ("ranking_accuracy_before", "ranking_accuracy", "reward_accuracy", "reward_margin", "steps")  # on the terminal

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


def run_study(
    name: str,
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any],
    *,
    values: Mapping[str, Sequence[Any]] | None = None,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    plots: bool = True,
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
    check_study(study, config)
    cells = grid(study, config, values or {}, quick=quick, seeds=seeds or [config.seed])
    runs = [with_settings(config, _settings(study, cell)) for cell in cells]
    ranks.set_threads(config.threads)
    with RunLock(root), run_log(root, config.log_level), explaining(root):
        if ranks.is_main():
            atomic_write(root / "config.yaml", to_yaml(config).encode())
        rows: dict[str, list[dict[str, Any]]] = {"cells": [], "curves": [], "scores": []}
        for number, (cell, run) in enumerate(zip(cells, runs, strict=True), start=1):
            logger.info("study %s: run %d of %d: %s", name, number, len(cells), _format_cell(cell))
            made = study.run(partial(_open_pipeline, root), run, cell)
            _collect(rows, cell, made)
            _drop_checkpoints(made)
        points = [axis.column for axis in study.axes if axis.column not in study.repeats]
        frames = {table: to_frame(found) for table, found in rows.items()}
        result = StudyResult(root, summary=to_frame(summarize_cells(rows["cells"], points)), **frames)
        if ranks.is_main():
            _write(name, config, result, plots=plots)
    return result


def _open_pipeline(root: Path, config: RunConfig) -> Pipeline:
    pipeline = Pipeline(config, root / "stages")
    check_room(pipeline)
    return pipeline


def grid(
    study: Study, config: RunConfig, given: Mapping[str, Sequence[Any]], *, quick: bool, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The cells of a study, seeds outermost.

    Args:
        study: what is varied.
        config: what all runs have in common.
        given: option of an axis -> its values; other axes take their grid.
        quick: a few points of each axis instead of the whole grid.
        seeds: of the repeats.

    Returns:
        Each cell as column -> value.

    Raises:
        ConfigError: an unknown axis, values that are not allowed or repeated, or models that must be named.
    """
    known = [axis.option for axis in study.axes]
    for option in given:
        if option not in known:
            raise ConfigError(f"unknown setting '{option}'{did_you_mean(option, known)}; there are {', '.join(known)}")
    columns: dict[str, Sequence[Any]] = {"seed": seeds}
    for axis in study.axes:
        if axis.embedded_only and config.model != EMBEDDED_MODEL and axis.option not in given:
            raise ConfigError(f"{axis.option} must be given with model: name the models, --{axis.option} PATH PATH …")
        columns[axis.column] = given.get(axis.option) or (axis.quick if quick else axis.values)
        if axis.check is not None:
            for value in columns[axis.column]:
                axis.check(value)
    for option, values in zip(["seeds", *known], columns.values(), strict=True):
        check(len(set(values)) == len(values), option, list(values), "different values", "leave out the repeated ones")
    cells = [dict(zip(columns, point, strict=True)) for point in product(*columns.values())]
    return [cell for cell in cells if study.keep(cell)]


def _settings(study: Study, cell: Values) -> dict[str, Any]:
    varied = {axis.setting: cell[axis.column] for axis in study.axes if axis.setting is not None}
    return {"seed": cell["seed"], **varied}


def _format_cell(cell: Values) -> str:
    return ", ".join(f"{column} {value}" for column, value in cell.items())


def _collect(rows: dict[str, list[dict[str, Any]]], cell: Values, made: Mapping[str, Artifact]) -> None:
    rows["cells"].append(cell_row(cell, made))
    rows["curves"] += curve_rows(cell, made["policy"])
    values = made.get("scores") or made.get("rewards")
    if values is not None:
        rows["scores"] += score_rows(cell, made["data"], values)


def _drop_checkpoints(made: Mapping[str, Artifact]) -> None:
    """Remove checkpoints, which a finished training does not need: a grid of runs would keep several of each."""
    if ranks.is_main():
        for artifact in made.values():
            shutil.rmtree(artifact.directory / "checkpoints", ignore_errors=True)


def _write(name: str, config: RunConfig, result: StudyResult, *, plots: bool) -> None:
    for table in ("cells", "summary", "curves", "scores"):
        frame = getattr(result, table)
        if not frame.is_empty():
            write_csv(frame, result.output_dir / f"{table}.csv")
    if plots:
        from pyprefopt.studies.figures import FIGURES

        figures = FIGURES[name](
            cells=result.cells, summary=result.summary, curves=result.curves, scores=result.scores,
            window=config.convergence_window, until=config.until_converged,
        )  # fmt: skip
        for title, figure in figures.items():
            save(figure, result.output_dir / title, ("png",))


def format_summary(result: StudyResult) -> str:
    """The headline metrics at every point of the grid, for a terminal."""
    import polars as pl

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
    return show_table(table)
