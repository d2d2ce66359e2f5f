"""The figures show the numbers of the tables."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pyprefopt.plots import at_sizes, curves, densities, heatmap, line, panels
from pyprefopt.studies.catalog import STUDIES
from pyprefopt.studies.figures import FIGURES


def summary(point: dict[str, list[float]], metric: str, means: list[float], half: float | None = None) -> pl.DataFrame:
    low = [None if half is None else mean - half for mean in means]
    high = [None if half is None else mean + half for mean in means]
    bounds = {"low": pl.Series(low, dtype=pl.Float64), "high": pl.Series(high, dtype=pl.Float64)}
    return pl.DataFrame({**point, "metric": metric, "mean": means, **bounds, "n": 1 if half is None else 3})


def axes():
    return panels(1)[1][0]


def test_heatmap_writes_every_mean_into_its_field():
    point = {"rejected_ratio": [0.1, 0.1, 0.9], "chosen_ratio": [0.3, 0.9, 0.3]}
    plot = axes()
    heatmap(plot, summary(point, "ranking_accuracy", [0.25, 0.5, 0.75]), "rejected_ratio", "chosen_ratio",
            "ranking_accuracy")  # fmt: skip
    written = {text.get_text(): text.get_position() for text in plot.texts}
    assert written == {"0.250": (0, 0), "0.500": (0, 1), "0.750": (1, 0)}
    shown = plot.images[0].get_array()
    assert shown[0].tolist() == [0.25, 0.75]
    assert shown[1, 0] == 0.5
    assert shown.mask[1, 1]  # no run there
    assert [label.get_text() for label in plot.get_yticklabels()] == ["0.3", "0.9"]


def test_heatmap_writes_intervals():
    plot = axes()
    table = summary({"rejected_ratio": [0.1], "chosen_ratio": [0.3]}, "reward_margin", [0.25], half=0.0625)
    heatmap(plot, table, "rejected_ratio", "chosen_ratio", "reward_margin")
    assert [text.get_text() for text in plot.texts] == ["0.250\n±0.062"]


@pytest.mark.parametrize("half", [None, 0.1])
def test_line_is_sorted_and_has_intervals_where_there_are_some(half):
    plot = axes()
    line(plot, summary({"fraction": [1.0, 0.1, 0.4]}, "ranking_accuracy", [0.9, 0.5, 0.7], half), "fraction",
         "ranking_accuracy")  # fmt: skip
    assert plot.lines[0].get_xydata().tolist() == [[0.1, 0.5], [0.4, 0.7], [1.0, 0.9]]
    bars = [bar.get_segments()[0] for bar in plot.collections]
    expected = [[[0.1, 0.4], [0.1, 0.6]], [[0.4, 0.6], [0.4, 0.8]], [[1.0, 0.8], [1.0, 1.0]]]
    assert len(bars) == (0 if half is None else 3)
    assert half is None or np.allclose(bars, expected)


def test_even_spacing_keeps_the_values_as_names():
    plot = axes()
    line(plot, summary({"alpha": [0.0, 1000.0, 0.5]}, "steps", [3.0, 1.0, 2.0]), "alpha", "steps", even=True)
    assert plot.lines[0].get_xydata().tolist() == [[0, 3], [1, 2], [2, 1]]
    assert [label.get_text() for label in plot.get_xticklabels()] == ["0", "0.5", "1000"]


def test_sizes_are_the_only_marks_of_their_axis():
    plot = axes()
    at_sizes(plot, [640, 18_640, 435_840, 1_100_000_000])
    plot.figure.canvas.draw()
    assert plot.get_xscale() == "log"
    assert [text.get_text() for text in plot.get_xticklabels()] == ["640", "18.6k", "436k", "1.1B"]
    assert not plot.xaxis.get_minorticklocs().size


def test_curves_are_moving_averages_of_the_mean_run():
    frame = pl.DataFrame({
        "alpha": [0.5] * 6, "seed": [0, 0, 0, 1, 1, 1], "step": [1, 2, 3] * 2, "loss": [1.0, 0.5, 0.0, 0.5, 0.5, 0.5],
    })  # fmt: skip
    plot = axes()
    curves(plot, frame, "alpha", window=2)
    assert plot.lines[0].get_ydata().tolist() == [0.75, 0.625, 0.375]


def test_densities_of_a_side_by_name():
    scores = pl.DataFrame({
        "seed": 0, "oracle": ["16", "16", "64", "16"], "side": ["chosen", "chosen", "chosen", "rejected"],
        "left": [0.0, 1.0, 0.0, 0.0], "right": [1.0, 2.0, 4.0, 1.0], "density": [0.25, 0.75, 0.25, 1.0],
    })  # fmt: skip
    plot = axes()
    densities(plot, scores, "oracle", "chosen", ["16", "64"])
    assert [drawn.get_xydata().tolist() for drawn in plot.lines] == [[[0.5, 0.25], [1.5, 0.75]], [[2.0, 0.25]]]


def test_every_study_has_its_figures():
    assert set(FIGURES) == set(STUDIES)


def test_the_figure_of_the_guidance_shows_threshold_and_start():
    cells = pl.DataFrame({"alpha": [0.0, 1.0], "ranking_accuracy_before": [0.4, 0.4]})
    table = pl.concat(summary({"alpha": [0.0, 1.0]}, metric, [5.0, 3.0]) for metric in ("steps", "ranking_accuracy"))
    frame = pl.DataFrame({"alpha": [0.0, 1.0], "step": [1, 1], "loss": [0.7, 0.6]})
    made = FIGURES["alpha_tgdpo"](
        cells=cells, summary=table, curves=frame, scores=pl.DataFrame(), window=1, until=0.125
    )
    losses, steps, accuracy = made["alpha_tgdpo"].axes
    assert [0.125, 0.125] in [list(drawn.get_ydata()) for drawn in losses.lines]
    assert list(steps.lines[0].get_ydata()) == [5.0, 3.0]
    assert [0.4, 0.4] in [list(drawn.get_ydata()) for drawn in accuracy.lines]
