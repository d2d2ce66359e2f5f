"""The kinds of plot: each draws a tidy frame into given axes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pyprefopt.errors import ConfigError
from pyprefopt.storage.files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "ranking_accuracy": "ranking accuracy, test pairs", "reward_accuracy": "reward accuracy, test pairs",
    "reward_margin": "reward margin, test pairs", "recall_chosen": "planted tokens found, chosen",
    "recall_rejected": "planted tokens found, rejected", "steps": "optimizer steps",
    "chosen_ratio": "share of chosen tokens", "rejected_ratio": "share of rejected tokens",
    "fraction": "share of the pairs that the oracle is trained on", "oracle_parameters": "parameters of the oracle",
    "alpha": r"$\alpha$", "oracle": "oracle",
}  # fmt: skip


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of `count` plots side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count, 4.0), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def save(figure: Figure, path: Path, kinds: Sequence[str]) -> None:
    """Write a figure in files of these kinds (png, svg), whole or not at all; their suffix goes behind `path`."""
    for kind in kinds:
        buffer = BytesIO()
        figure.savefig(buffer, format=kind, dpi=150)
        atomic_write(path.with_name(f"{path.name}.{kind}"), buffer.getvalue())


def require_matplotlib(remedy: str) -> None:
    """ConfigError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"plots need matplotlib: pip install 'pyprefopt[analysis]', or {remedy}")


def label(name: str) -> str:
    """A column's name in plain words."""
    return LABELS.get(name, name.replace("_", " "))


def heatmap(axes: Axes, summary: pl.DataFrame, x: str, y: str, metric: str) -> None:
    """Mean of `metric` at every point (x, y), written into its field."""
    import polars as pl

    found = summary.filter(pl.col("metric") == metric)
    columns, lines = (sorted(found[name].unique().to_list()) for name in (x, y))
    table = [[float("nan")] * len(columns) for _ in lines]
    for point in found.iter_rows(named=True):
        i, j = lines.index(point[y]), columns.index(point[x])
        table[i][j] = point["mean"]
        spread = "" if point["low"] is None else f"\n±{point['mean'] - point['low']:.3f}"
        axes.text(j, i, f"{point['mean']:.3f}{spread}", ha="center", va="center", fontsize=8, color="black")
    image = axes.imshow(table, origin="lower", cmap="viridis", alpha=0.6, aspect="auto")
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(lines)), [f"{value:g}" for value in lines])
    axes.set(xlabel=label(x), ylabel=label(y), title=label(metric))
    axes.figure.colorbar(image, ax=axes)


def line(axes: Axes, summary: pl.DataFrame, x: str, metric: str, *, even: bool = False) -> None:
    """Mean of `metric` over x, with its intervals; `even` spaces the values of x evenly, whatever their distances."""
    import polars as pl

    found = summary.filter(pl.col("metric") == metric).sort(x)
    places = list(range(found.height)) if even else found[x].to_list()
    means = found["mean"].to_list()
    drawn = axes.plot(places, means, marker="o", label=label(metric))[0]
    for place, mean, low in zip(places, means, found["low"].to_list(), strict=True):
        if low is not None:
            axes.errorbar([place], [mean], yerr=[mean - low], color=drawn.get_color(), capsize=3)
    if even:
        axes.set_xticks(places, [f"{value:g}" for value in found[x].to_list()])
    axes.set(xlabel=label(x), ylabel=label(metric))


def band(axes: Axes, points: pl.DataFrame, x: str, y: str, low: str, high: str, *, label: str) -> None:
    """Draw y over x as a line, with a band from `low` to `high`."""
    places = points[x].to_list()
    drawn = axes.plot(places, points[y].to_list(), marker="o", markersize=4, label=label)[0]
    axes.fill_between(places, points[low].to_numpy(), points[high].to_numpy(), color=drawn.get_color(), alpha=0.15)


def at_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic x axis, marked at these sizes and nowhere else: marks of both kinds would overlap."""
    axes.set_xscale("log")
    axes.set_xticks(sizes, [_short(size) for size in sizes])
    axes.set_xticks([], minor=True)


_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "k"))


def _short(count: int) -> str:
    """Write a size in short, 18,640 as 18.6k."""
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), (1, ""))
    return f"{count / unit:.3g}{name}"


def dots(axes: Axes, cells: pl.DataFrame, x: str, metric: str) -> None:
    """Draw every single run as a point."""
    axes.scatter(cells[x].to_list(), cells[metric].to_list(), s=12, color="grey", alpha=0.7, label="runs")


def start(axes: Axes, cells: pl.DataFrame) -> None:
    """A line at the ranking accuracy before training, mean of the runs."""
    before: Any = cells["ranking_accuracy_before"].mean()
    if before is not None:
        axes.axhline(before, color="black", linestyle=":", linewidth=1, label="before training")


def curves(axes: Axes, frame: pl.DataFrame, hue: str, window: int) -> None:
    """Moving average of the training loss over `window` steps, a line a value of `hue` (the mean of its runs)."""
    for value in sorted(frame[hue].unique().to_list()):
        own = frame.filter(frame[hue] == value).group_by("step").mean().sort("step")
        smooth = own["loss"].rolling_mean(window, min_samples=1)
        axes.plot(own["step"].to_list(), smooth.to_list(), label=f"{label(hue)} = {value:g}", linewidth=1.2)
    axes.set(xlabel="optimizer step", ylabel=f"training loss, mean of {window} steps")


def densities(axes: Axes, scores: pl.DataFrame, hue: str, side: str, names: Sequence[str]) -> None:
    """The distribution of the token scores of one side, a line a value of `hue`; of the first seed."""
    import polars as pl

    for name in names:
        own = scores.filter((pl.col(hue) == name) & (pl.col("side") == side) & (pl.col("seed") == scores["seed"][0]))
        centres = ((own["left"] + own["right"]) / 2).to_list()
        axes.plot(centres, own["density"].to_list(), label=f"{label(hue)} {name}", linewidth=1.2)
    axes.set(xlabel="token score, nats", ylabel="density", title=f"{side} responses", yscale="log")
