"""The figures of each study, from its tables: name of the file -> figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyprefopt.plots import at_sizes, band, densities, dots, heatmap, line, panels, start
from pyprefopt.plots import curves as loss_curves

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl
    from matplotlib.figure import Figure


class Figures(Protocol):
    """Takes all tables of a study, `further` its own ones; `window` and `until` are of its training to convergence."""

    def __call__(
        self, *, cells: pl.DataFrame, summary: pl.DataFrame, curves: pl.DataFrame, scores: pl.DataFrame,
        further: Mapping[str, pl.DataFrame], window: int, until: float | None,
    ) -> dict[str, Figure]:  # fmt: skip
        """The figures by name."""


def ratios(*, summary: pl.DataFrame, **_: object) -> dict[str, Figure]:
    """SePO, Fig. 4: ranking accuracy and margin over both ratios."""
    figure, (accuracy, margin) = panels(2)
    heatmap(accuracy, summary, "rejected_ratio", "chosen_ratio", "ranking_accuracy")
    heatmap(margin, summary, "rejected_ratio", "chosen_ratio", "reward_margin")
    return {"ratios": figure}


def oracle_data(*, cells: pl.DataFrame, summary: pl.DataFrame, **_: object) -> dict[str, Figure]:
    """SePO, Fig. 5: ranking accuracy over the oracle's share of the data; beside it what the selection found."""
    known = cells["recall_chosen"].null_count() < cells.height
    figure, axes = panels(2 if known else 1)
    line(axes[0], summary, "fraction", "ranking_accuracy")
    dots(axes[0], cells, "fraction", "ranking_accuracy")
    start(axes[0], cells)
    if known:
        line(axes[1], summary, "fraction", "recall_chosen")
        line(axes[1], summary, "fraction", "recall_rejected")
        axes[1].set_ylabel("planted tokens found (recall)")
    for part in axes:
        part.legend()
    return {"oracle_data": figure}


def oracle_size(*, cells: pl.DataFrame, summary: pl.DataFrame, scores: pl.DataFrame, **_: object) -> dict[str, Figure]:
    """SePO, Fig. 6: ranking accuracy over the oracle's size, and the distributions of its scores on both sides."""
    figure, (accuracy, *sides) = panels(3)
    sizes = cells.select("oracle", "oracle_parameters").unique().sort("oracle_parameters")
    line(accuracy, summary.join(sizes, on="oracle"), "oracle_parameters", "ranking_accuracy")
    at_sizes(accuracy, sizes["oracle_parameters"].to_list())
    start(accuracy, cells)
    for axes, side in zip(sides, ("chosen", "rejected"), strict=True):
        densities(axes, scores, "oracle", side, sizes["oracle"].to_list())
    for axes in (accuracy, *sides):
        axes.legend()
    return {"oracle_size": figure}


def alpha_tgdpo(
    *, cells: pl.DataFrame, summary: pl.DataFrame, curves: pl.DataFrame, window: int, until: float | None, **_: object
) -> dict[str, Figure]:
    """TGDPO, Fig. 1 and Table 3: loss curves, steps until convergence, ranking accuracy there, by alpha."""
    figure, (losses, steps, accuracy) = panels(3)
    loss_curves(losses, curves, "alpha", window)
    if until is not None:
        losses.axhline(until, color="black", linestyle=":", linewidth=1, label="converged")
    line(steps, summary, "alpha", "steps", even=True)
    line(accuracy, summary, "alpha", "ranking_accuracy", even=True)
    start(accuracy, cells)
    losses.legend()
    accuracy.legend()
    return {"alpha_tgdpo": figure}


def alpha_treg(*, cells: pl.DataFrame, summary: pl.DataFrame, **_: object) -> dict[str, Figure]:
    """T-REG, Fig. 4: ranking accuracy and margin by alpha."""
    figure, (accuracy, margin) = panels(2)
    line(accuracy, summary, "alpha", "ranking_accuracy", even=True)
    start(accuracy, cells)
    accuracy.legend()
    line(margin, summary, "alpha", "reward_margin", even=True)
    return {"alpha_treg": figure}


def truncation(*, further: Mapping[str, pl.DataFrame], **_: object) -> dict[str, Figure]:
    """Accuracy of what was trained on the beginning of each response, by ratio and by length: whole and cut pairs."""
    import polars as pl

    table = further["accuracy"].filter(pl.col("pairs_of") == "all")
    axes = {"ratio": "share of each response that is kept", "length": "units of each response that are kept"}
    kinds = [kind for kind in axes if table[kind].null_count() < table.height]
    figure, parts = panels(len(kinds))
    for kind, part in zip(kinds, parts, strict=True):
        points = table.filter(pl.col(kind).is_not_null()).sort(kind)
        for test in points["test"].unique(maintain_order=True):
            own = points.filter(pl.col("test") == test)
            band(part, own, kind, "accuracy", "low", "high", label=f"tested on {test} responses")
        full = table.filter((pl.col("ratio") == 1) & (pl.col("test") == "whole"))
        if full.height:
            part.axhline(
                full["accuracy"].item(), color="black", linestyle="--", linewidth=1, label="trained on whole ones"
            )
        part.axhline(0.5, color="grey", linestyle=":", linewidth=1, label="chance")
        part.set(xlabel=axes[kind], ylabel="accuracy, test pairs")
        part.legend(fontsize=8)
    return {"truncation": figure}


FIGURES: dict[str, Figures] = {
    "ratios": ratios,
    "oracle_data": oracle_data,
    "oracle_size": oracle_size,
    "alpha_tgdpo": alpha_tgdpo,
    "alpha_treg": alpha_treg,
    "truncation": truncation,
}
