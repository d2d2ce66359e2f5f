"""Figures of evaluations, from their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyprefopt.plots import band, panels

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"ratio": "share of the tokens", "length": "tokens of each response"}


_NAMED = 12  # groups that a legend has room for


def accuracy_figure(table: pl.DataFrame, whole: float | None = None) -> Figure:
    """Accuracy with its 95 % interval by ratio and by length; a line a group where the first column names groups.

    `whole` is the accuracy of whole responses.
    """
    import polars as pl

    group = table.columns[0] if table.columns[0] != "kind" else None
    kinds = [kind for kind in AXES if (table["kind"] == kind).any()]
    figure, axes = panels(len(kinds))
    for kind, part in zip(kinds, axes, strict=True):
        points = table.filter(pl.col("kind") == kind)
        names = [] if group is None else points[group].unique(maintain_order=True).to_list()
        if group is None:
            band(part, points, "point", "accuracy", "low", "high", label="accuracy")
            if whole is not None:
                part.axhline(whole, color="black", linestyle="--", linewidth=1, label=f"whole responses, {whole:.3f}")
        else:
            for place, name in enumerate(names):
                own = points.filter(pl.col(group) == name)
                named = str(name) if place < _NAMED or len(names) <= _NAMED + 1 else "_"
                band(part, own, "point", "accuracy", "low", "high", label=named)
        part.axhline(0.5, color="grey", linestyle=":", linewidth=1, label="chance")
        if len(names) > _NAMED + 1:
            part.plot([], [], " ", label=f"and {len(names) - _NAMED} more")
        part.set(xlabel=AXES[kind], ylabel="accuracy")
        if kind == "length":
            part.set_xscale("log", base=2)
        part.legend(fontsize=8)
    return figure


def kl_figure(table: pl.DataFrame) -> Figure:
    """Both divergences by position, with 95 % intervals, a line a side; below 2 % of survivors they are left out.

    Survivors, the responses that are so long, are on the right axis.
    """
    import polars as pl

    directions = {"kl_policy_ref": "KL(policy || ref), nats", "kl_ref_policy": "KL(ref || policy), nats"}
    figure, axes = panels(len(directions))
    for (name, title), part in zip(directions.items(), axes, strict=True):
        sides = table["side"].unique(maintain_order=True).to_list()
        for side in sides[1:] or sides:
            points = table.filter(pl.col("side") == side)
            points = points.filter(pl.col("survivors") >= 0.02 * pl.col("survivors").max())
            x = points["position"].to_list()
            drawn = part.plot(x, points[name].to_list(), linewidth=1.2, label=side)[0]
            low, high = (points[f"{name}_{end}"].to_numpy() for end in ("low", "high"))
            part.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15)
        part.set(xlabel="position in the response, tokens", ylabel=title)
        part.legend(fontsize=8)
        _draw_survivors(part, table.filter(pl.col("side") == sides[0]))
    return figure


def _draw_survivors(axes: Axes, points: pl.DataFrame) -> None:
    """The share of responses that have each position, on an axis of its own."""
    right = axes.twinx()
    share = points["survivors"] / points["survivors"].max()
    right.plot(points["position"].to_list(), share.to_list(), color="grey", linestyle=":", linewidth=1)
    right.set(ylabel="share of responses so long (dotted)", ylim=(0, 1.05))


MARKS = {"mixing": ("o", "tab:blue"), "length_control": ("^", "tab:red"), "kl_threshold": ("s", "tab:green")}


def decoding_figure(table: pl.DataFrame) -> Figure:
    """Reward, and length, against accumulated divergence, with 95 % intervals; mixing is joined to a curve."""
    import polars as pl

    figure, axes = panels(2)
    titles = {"reward": "reward", "tokens": "length, tokens"}
    for part, (name, title) in zip(axes, titles.items(), strict=True):
        for decoder, (mark, colour) in MARKS.items():
            points = table.filter(pl.col("decoder") == decoder).sort("kl")
            if points.is_empty():
                continue
            x, y = points["kl"].to_numpy(), points[name].to_numpy()
            x_ends, y_ends = (
                [v - points[f"{column}_low"].to_numpy(), points[f"{column}_high"].to_numpy() - v]
                for column, v in (("kl", x), (name, y))
            )
            line = "-" if decoder == "mixing" else "none"
            part.errorbar(
                x, y, xerr=x_ends, yerr=y_ends, marker=mark, color=colour, linestyle=line, linewidth=1, markersize=5,
                elinewidth=0.6, label=decoder.replace("_", " "),
            )  # fmt: skip
            for place, height, setting, value in zip(x, y, points["setting"], points["value"], strict=True):
                part.annotate(
                    f"{setting} {value:g}", (place, height), xytext=(4, -9), textcoords="offset points", fontsize=7,
                    color=colour,
                )  # fmt: skip
        part.set(xlabel="KL(decoder || ref) of a response, nats", ylabel=title)
    axes[0].legend(fontsize=8, loc="lower right")
    return figure
