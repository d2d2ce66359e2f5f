"""Top-k% selection against a slow twin, in every kind of column that it takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.data.select import select_top_k, top_k_mask
from pyprefopt.errors import ConfigError, DataError

FLOATS = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf])
LISTS = pl.List(pl.Float32)
BOOLS = pl.List(pl.Boolean)


def slow(scores, ratio, largest=True, mask=None, rounding="half_up"):
    if scores is None:
        return None
    candidates = [i for i in range(len(scores)) if mask is None or mask[i]]
    exact = ratio * len(candidates)
    number = min(len(candidates), max(1, math.floor(exact + 0.5 if rounding == "half_up" else exact)))
    ranked = sorted(candidates, key=lambda i: (-scores[i] if largest else scores[i], i))
    return [i in ranked[:number] for i in range(len(scores))]


@st.composite
def columns(draw):
    """Lists of scores, some null, and masks of the same lengths."""
    scores = draw(st.lists(st.none() | st.lists(FLOATS, max_size=12), max_size=6))
    masks = [None if s is None else draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))) for s in scores]
    return scores, masks


@settings(deadline=None)
@given(columns(), st.floats(0.01, 1.0), st.booleans(), st.booleans(), st.sampled_from(["half_up", "floor"]))
def test_agrees_with_the_twin(lists, ratio, largest, masked, rounding):
    scores, masks = lists
    mask = pl.Series("m", masks, dtype=BOOLS) if masked else None
    got = top_k_mask(pl.Series("s", scores, dtype=LISTS), ratio, largest=largest, mask=mask, rounding=rounding)
    pairs = zip(scores, masks if masked else [None] * len(scores), strict=True)
    assert got.to_list() == [slow(s, ratio, largest, m, rounding) for s, m in pairs]
    assert (got.name, got.dtype) == ("s", BOOLS)


def test_the_same_kind_comes_back():
    scores = pl.Series("s", [[3.0, 1.0, 2.0], [], None], dtype=LISTS)
    wanted = [[True, False, False], [], None]
    array = scores.to_arrow()
    assert top_k_mask(array, 0.3).to_pylist() == wanted
    assert isinstance(top_k_mask(array, 0.3), pa.Array)
    chunked = pa.chunked_array([array.slice(0, 1), array.slice(1)])
    assert top_k_mask(chunked, 0.3).to_pylist() == wanted
    assert isinstance(top_k_mask(chunked, 0.3), pa.ChunkedArray)
    narrow = array.cast(pa.list_(pa.float32()))
    assert top_k_mask(narrow.slice(1), 0.3).to_pylist() == wanted[1:]
    frame = scores.to_frame().with_columns(m=pl.Series([[False, True, True], [], None], dtype=BOOLS))
    for collect in ({}, {"engine": "streaming"}):
        got = frame.lazy().with_columns(top_k_mask(pl.col("s"), 0.3)).collect(**collect)
        assert got["s"].to_list() == wanted
        got = frame.lazy().select(top_k_mask(pl.col("s"), 0.3, mask=pl.col("m")).alias("t")).collect(**collect)
        assert got["t"].to_list() == [[False, False, True], [], None]


@pytest.mark.parametrize(
    ("ratio", "tokens", "half_up", "floor"),
    [
        (0.3, 5, 2, 1),
        (0.5, 1, 1, 1),
        (0.5, 5, 3, 2),
        (0.145, 100, 14, 14),
        (0.1, 3, 1, 1),
        (1.0, 7, 7, 7),
        (0.35, 10, 4, 3),
    ],
)
def test_numbers_selected(ratio, tokens, half_up, floor):
    # 0.145 has no exact binary form: 0.145 * 100 is 14.499999999999998 in float64, which rounds to 14
    scores = pl.Series([list(np.arange(tokens))], dtype=LISTS)
    for rounding, wanted in (("half_up", half_up), ("floor", floor)):
        assert top_k_mask(scores, ratio, rounding=rounding).list.sum().item() == wanted


def segments(scores, kinds=("prompt", "chosen", "rejected"), row=7, mask=None):
    return pl.DataFrame(
        {
            "row": pl.Series([row] * len(kinds), dtype=pl.UInt64),
            "kind": list(kinds),
            "mask": pl.Series(mask or [[True] * len(s or []) for s in scores], dtype=BOOLS),
            "scores": pl.Series(scores, dtype=LISTS),
        }
    )


def test_select_top_k_takes_the_highest_of_chosen_and_the_lowest_of_rejected():
    frame = segments([None, [1, 4, 3, 2], [1, 4, 0, 2]], mask=[[], [True, False, True, True], [True] * 4])
    wanted = [None, [False, False, True, False], [True, False, True, False]]
    assert select_top_k(frame, chosen_ratio=0.3, rejected_ratio=0.5)["selected"].to_list() == wanted
    for engine in ("in-memory", "streaming"):
        lazy = select_top_k(frame.lazy(), chosen_ratio=0.3, rejected_ratio=0.5)
        assert lazy.collect(engine=engine)["selected"].to_list() == wanted
    everything = select_top_k(frame, chosen_ratio=None, rejected_ratio=None)["selected"].to_list()
    assert everything == [None, [True, False, True, True], [True] * 4]


def test_nothing_to_select_gives_all_false():
    frame = segments([None, [math.nan, 1.0], []], mask=[[], [False, False], []])
    assert select_top_k(frame)["selected"].to_list() == [None, [False, False], []]


@pytest.mark.parametrize(
    ("scores", "kinds", "message"),
    [
        ([None, [1.0], [0.5, math.nan]], None, r"row 7: the score of token 1 is NaN or null"),
        ([None, [None], [0.5]], None, r"row 7: the score of token 0 is NaN or null"),
        ([None, None, [0.5]], None, r"row 7: scores are null"),
        ([None, [1.0]], ("prompt", "response"), r"row 7: kind 'response' has no side"),
    ],
)
def test_bad_rows_are_named(scores, kinds, message):
    frame = segments(scores, kinds or ("prompt", "chosen", "rejected"))
    with pytest.raises(DataError, match=message):
        select_top_k(frame)
    with pytest.raises(DataError, match=message):
        select_top_k(frame.lazy()).collect()


def test_lists_of_different_lengths_are_named():
    with pytest.raises(DataError, match="row 1: mask has 2 entries for 1 scores"):
        top_k_mask(pl.Series([[1.0], [2.0]], dtype=LISTS), 0.5, mask=pl.Series([[True], [True, False]], dtype=BOOLS))
    with pytest.raises(DataError, match="mask has 1 lines but scores has 2"):
        top_k_mask(pl.Series([[1.0], [2.0]], dtype=LISTS), 0.5, mask=pl.Series([[True]], dtype=BOOLS))


def test_settings_and_columns_are_checked():
    frame = segments([None, [1.0], [1.0]])
    with pytest.raises(ConfigError, match=r"chosen_ratio must be in \(0, 1\], got 1.5"):
        select_top_k(frame, chosen_ratio=1.5)
    with pytest.raises(ConfigError, match="rounding must be 'half_up', 'floor' or 'ceil', got 'up'"):
        select_top_k(frame, rounding="up")
    with pytest.raises(DataError, match=r"no column 'scores' .*did you mean 'score'"):
        select_top_k(frame.rename({"scores": "score"}))
    with pytest.raises(DataError, match=r"column 'scores' must be .*Float32.*, got .*Float64"):
        select_top_k(frame.cast({"scores": pl.List(pl.Float64)}))
    with pytest.raises(DataError, match="scores must be lists of Float32"):
        top_k_mask(pl.Series([[1.0]]), 0.5)


THREADS = """
import hashlib, numpy as np, pyarrow as pa
from pyprefopt.data.select import top_k_mask
rng = np.random.default_rng(0)
offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 400, 1000))])
scores = pa.LargeListArray.from_arrays(offsets, pa.array(rng.integers(0, 9, offsets[-1]).astype(np.float32)))
print(hashlib.sha256(top_k_mask(scores, 0.3).values.to_numpy(zero_copy_only=False).tobytes()).hexdigest())
"""


def test_any_number_of_threads_gives_the_same():
    def run(threads):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        return subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, check=True).stdout

    assert run(1) == run(3)
