"""What a study is: axes that it varies, and which runs stand behind one point of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.errors import ConfigError, check, did_you_mean
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.hub import EMBEDDED_DATA, EMBEDDED_MODEL

if TYPE_CHECKING:
    import polars as pl

Values = Mapping[str, Any]  # column -> value, of one cell
Options = Mapping[str, Any]  # of a study, by their names on the command line
OpenPipeline = Callable[[RunConfig], Pipeline]


@dataclass(frozen=True)
class Axis:
    """Something that a study varies."""

    option: str  # its values on the command line, `--alphas 0 0.5`
    column: str  # its name in the tables
    setting: str | None  # the run's setting that takes the value; None: `Study.run` knows what to do with it
    values: tuple[Any, ...]  # the paper's grid
    quick: tuple[Any, ...]  # a few points of it
    embedded_only: bool = False  # the values are for the embedded model; with --model, the user gives others
    check: Callable[[Any], None] | None = None  # ConfigError for a value that no setting refuses
    kind: type = float  # of its values: float, int or str


@dataclass(frozen=True)
class Cell:
    """One run of a study: what was varied, the stages behind it, and what it was measured by besides."""

    values: Values
    made: Mapping[str, Artifact]
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class NoOptions:
    """A study without options of its own."""


def run_cell(pipeline: OpenPipeline, config: RunConfig, values: Values) -> dict[str, Artifact]:  # noqa: ARG001
    """Run the cell's settings once, and give the stages that it made or found."""
    run = pipeline(config)
    _ = run.policy
    return run.made


@dataclass(frozen=True)
class Study:
    """One question, as a grid of runs."""

    title: str
    methods: tuple[str, ...]  # --method: the first one, or another of these
    axes: tuple[Axis, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of every run, where the user gives no others
    excludes: tuple[str, ...] = ()  # settings that the study gives itself, beside those of its axes
    repeats: tuple[str, ...] = ("seed",)  # columns that the means and intervals go over
    run: Callable[[OpenPipeline, RunConfig, Values], dict[str, Artifact]] = run_cell
    keep: Callable[[Values], bool] = lambda values: True  # noqa: ARG005  (which points of the grid are runs)
    options: type = NoOptions  # a dataclass: what the command takes besides

    def settings_of(self, options: Options) -> dict[str, Any]:  # noqa: ARG002
        """The settings that the study's own options stand for, by dotted name."""
        return {}

    def points(self, values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """The points of the grid, of the values of each column."""
        for point in product(*values.values()):
            yield dict(zip(values, point, strict=True))

    def settings_at(self, cell: Values) -> dict[str, Any]:
        """The settings of one cell, by dotted name."""
        varied = {axis.setting: cell[axis.column] for axis in self.axes if axis.setting is not None}
        return {"seed": cell["seed"], **varied}

    def check(self, config: RunConfig, options: Options) -> None:  # noqa: ARG002
        """Check what the study asks of its runs, besides what each run asks of its settings.

        Raises:
            ConfigError: another method than the study's, nothing to compare the runs on, or `--check`.
        """
        self.check_method(config.method)
        held_out = config.data == EMBEDDED_DATA or config.eval_data is not None or config.eval_ratio > 0
        check(held_out, "eval_ratio", config.eval_ratio, "> 0 in a study without eval_data", "runs are compared on it")
        check(
            not config.check, "check", config.check, "false in a study", "check a single run: pyprefopt train --check"
        )

    def check_method(self, method: str) -> None:
        """ConfigError for a method that the study is not about."""
        known = f"one of {', '.join(self.methods)} in this study"
        check(method in self.methods, "method", method, known, "leave it out for the first of them")

    def measure(self, root: Path, config: RunConfig, made: Mapping[str, Artifact], options: Options) -> dict[str, Any]:
        """What a cell is measured by besides: numbers for its line, and what `tables` reads.

        Args:
            root: the study's folder.
            config: the cell's run.
            made: its stages.
            options: the study's own, by their names on the command line.
        """
        del root, config, made, options
        return {}

    def tables(self, cells: Sequence[Cell], options: Options) -> dict[str, pl.DataFrame]:  # noqa: ARG002
        """Further tables over all cells, by name."""
        return {}

    def grid(
        self, config: RunConfig, given: Mapping[str, Sequence[Any]], *, quick: bool, seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The cells of the study, seeds outermost.

        Args:
            config: what all runs have in common.
            given: option of an axis -> its values; other axes take their grid.
            quick: a few points of each axis instead of the whole grid.
            seeds: of the repeats.

        Returns:
            Each cell as column -> value.

        Raises:
            ConfigError: an unknown axis, values that are not allowed or repeated, or models that must be named.
        """
        known = [axis.option for axis in self.axes]
        for name in given:
            if name not in known:
                raise ConfigError(f"unknown setting '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
        columns: dict[str, Sequence[Any]] = {}
        for axis in self.axes:
            if axis.embedded_only and config.model != EMBEDDED_MODEL and axis.option not in given:
                raise ConfigError(
                    f"{axis.option} must be given with model: name the models, --{axis.option} PATH PATH …"
                )
            columns[axis.column] = given.get(axis.option) or (axis.quick if quick else axis.values)
            if axis.check is not None:
                for value in columns[axis.column]:
                    axis.check(value)
        for option, values in zip(["seeds", *known], [seeds, *columns.values()], strict=True):
            check(len(set(values)) == len(values), option, list(values), "different values", "leave out the repeated")
        cells = [{"seed": seed, **point} for seed in seeds for point in self.points(columns)]
        return [cell for cell in cells if self.keep(cell)]
