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

from pyprefopt.data.batching.selection import random_mask, select_tokens, select_top_k, threshold_mask, top_k_mask
from pyprefopt.data.truncation.dispatch import truncate_column
from pyprefopt.errors import ConfigError, DataError
from tests.reference import cutting

FLOATS = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf])
LISTS = pl.List(pl.Float32)
BOOLS = pl.List(pl.Boolean)


@st.composite
def columns(draw):
    """Lists of scores, some null, with masks and ids of the same lengths."""
    scores = draw(st.lists(st.none() | st.lists(FLOATS, max_size=12), max_size=6))

    def beside(values):
        return [None if s is None else draw(st.lists(values, min_size=len(s), max_size=len(s))) for s in scores]

    return scores, beside(st.booleans()), beside(st.integers(0, 5))


@st.composite
def options(draw):
    """Which tokens may be selected, and how many at least, as columns and as the twin takes them."""
    scores, masks, ids = draw(columns())
    masked, excluded = draw(st.booleans()), draw(st.lists(st.integers(0, 5), max_size=3))
    ours = {"mask": pl.Series("m", masks, dtype=BOOLS) if masked else None, "excluded_ids": excluded}
    ours |= {"ids": pl.Series("i", ids, dtype=pl.List(pl.UInt32)) if excluded else None}
    minimum = draw(st.integers(0, 3))
    twins = [
        None if s is None else {"mask": m if masked else None, "ids": i, "excluded": excluded, "minimum": minimum}
        for s, m, i in zip(scores, masks, ids, strict=True)
    ]
    return scores, ours | {"minimum": minimum}, twins


roundings = st.sampled_from(["half_up", "floor", "ceil"])
ratios = st.floats(0.01, 1.0) | st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@settings(deadline=None)
@given(options(), ratios, st.booleans(), roundings)
def test_top_k_agrees_with_the_twin(lists, ratio, largest, rounding):
    scores, ours, twins = lists
    got = top_k_mask(pl.Series("s", scores, dtype=LISTS), ratio, largest=largest, rounding=rounding, **ours)
    assert got.to_list() == [
        t and cutting.top_k(s, ratio, largest, rounding=rounding, **t) for s, t in zip(scores, twins, strict=True)
    ]
    assert (got.name, got.dtype) == ("s", BOOLS)


@settings(deadline=None)
@given(options(), FLOATS, st.booleans())
def test_threshold_agrees_with_the_twin(lists, limit, largest):
    scores, ours, twins = lists
    got = threshold_mask(pl.Series("s", scores, dtype=LISTS), limit, largest=largest, **ours)
    assert got.to_list() == [
        t and cutting.threshold(s, limit, largest, **t) for s, t in zip(scores, twins, strict=True)
    ]


@settings(deadline=None)
@given(options(), ratios, roundings, st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_random_agrees_with_the_twin(lists, ratio, rounding, seed, first):
    scores, ours, twins = lists
    lengths = pl.Series("s", scores, dtype=LISTS)
    rows = pl.Series("r", range(first, first + len(scores)), dtype=pl.UInt64)
    got = random_mask(lengths, ratio, seed=seed, rows=rows, rounding=rounding, **ours)
    assert got.to_list() == [
        t and cutting.random(len(s), ratio, seed, first + row, rounding=rounding, **t)
        for row, (s, t) in enumerate(zip(scores, twins, strict=True))
    ]
    assert random_mask(lengths.list.len(), ratio, seed=seed, rows=rows, rounding=rounding, **ours).equals(got)
    assert random_mask(lengths, ratio, seed=seed, segments=rows, **ours).to_list() == [
        t and cutting.random(len(s), ratio, seed, row, first + row, **t)
        for row, (s, t) in enumerate(zip(scores, twins, strict=True))
    ]


def test_random_is_as_many_and_uniform():
    """Each token is selected about as often as any other, and the sets do not depend on chunks or order."""
    lengths = pl.Series("n", [20] * 4000)
    mask = random_mask(lengths, 0.3, seed=3)
    assert set(mask.list.sum()) == {6}
    counts = np.array(mask.to_list()).sum(0)
    assert abs(counts - 1200).max() < 6 * math.sqrt(4000 * 0.3 * 0.7)
    frame = pl.DataFrame({"n": lengths, "row": range(4000)}).sample(fraction=1, shuffle=True, seed=0)
    frame = pl.concat([frame[:1234], frame[1234:]], rechunk=False)
    lazy = frame.lazy().with_columns(mask=random_mask(pl.col("n"), 0.3, seed=3, rows=pl.col("row")))
    for engine in ("in-memory", "streaming"):
        assert lazy.collect(engine=engine).sort("row")["mask"].to_list() == mask.to_list()


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
        (0.145, 100, 15, 14),
        (0.29, 100, 29, 29),
        (1 / 3, 6, 2, 2),
        (0.1, 3, 1, 1),
        (1.0, 7, 7, 7),
        (0.35, 10, 4, 3),
    ],
)
def test_numbers_selected(ratio, tokens, half_up, floor):
    # the ratio is the decimal that was written: 0.145 * 100 is 14.499999999999998 in float64, but 14.5
    scores = pl.Series([list(np.arange(tokens))], dtype=LISTS)
    for rounding, wanted in (("half_up", half_up), ("floor", floor)):
        assert top_k_mask(scores, ratio, rounding=rounding).list.sum().item() == wanted


@settings(deadline=None)
@given(ratios, st.lists(st.integers(1, 300), min_size=1, max_size=20), st.sampled_from(["floor", "ceil"]))
def test_cutting_and_selecting_share_one_law(ratio, lengths, rounding):
    expected = [cutting.kept(length, ratio, None, rounding) for length in lengths]
    scores = pl.Series([[0.0] * length for length in lengths], dtype=LISTS)
    assert top_k_mask(scores, ratio, rounding=rounding).list.sum().to_list() == expected
    assert truncate_column(scores, ratio=ratio, rounding=rounding).list.len().to_list() == expected
    texts = pl.Series(["x" * length for length in lengths])
    cut = truncate_column(texts, ratio=ratio, unit="characters", rounding=rounding)
    assert cut.str.len_chars().to_list() == expected


def segments(scores, kinds=("prompt", "chosen", "rejected"), row=7, mask=None):
    return pl.DataFrame(
        {
            "row": pl.Series([row] * len(kinds), dtype=pl.UInt64),
            "segment": pl.Series(range(len(kinds)), dtype=pl.UInt16),
            "kind": pl.Series(list(kinds), dtype=pl.String),
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


@settings(deadline=None, max_examples=60)
@given(columns(), st.sampled_from(["top_k", "threshold", "random"]), st.floats(0.1, 1), FLOATS, roundings, st.data())
def test_segments_agree_with_the_twin(lists, method, ratio, limit, rounding, data):
    scores, masks, ids = ([line or [] for line in column] for column in lists)
    kinds = [data.draw(st.sampled_from(["prompt", "chosen", "rejected"])) for _ in scores]
    rows = list(range(5, 5 + len(scores)))
    frame = segments([None if k == "prompt" else s for s, k in zip(scores, kinds, strict=True)], kinds, mask=masks)
    frame = frame.with_columns(row=pl.Series(rows, dtype=pl.UInt64), ids=pl.Series(ids, dtype=pl.List(pl.UInt32)))
    amounts = {"rejected_threshold": limit} if method == "threshold" else {"chosen_ratio": ratio}
    rule = {"minimum": data.draw(st.integers(0, 2))}
    settings = amounts | rule | {"method": method, "excluded_ids": [2, 3]}
    settings |= {"top_k": {"rounding": rounding}, "random": {"rounding": rounding, "seed": 9}}.get(method, {})
    got = select_tokens(frame, **settings)

    def expected(at, kind, score, mask, token_ids):
        if kind == "prompt":
            return None
        free = {"mask": mask, "ids": token_ids, "excluded": (2, 3), **rule}
        if method == "threshold":
            return cutting.threshold(score, limit if kind == "rejected" else -math.inf, kind == "chosen", **free)
        share = ratio if kind == "chosen" else 1.0
        if method == "random":
            return cutting.random(len(mask), share, 9, rows[at], at, rounding=rounding, **free)
        return cutting.top_k(score, share, kind == "chosen", rounding=rounding, **free)

    wanted = [expected(at, *line) for at, line in enumerate(zip(kinds, scores, masks, ids, strict=True))]
    assert got["selected"].to_list() == wanted
    lazy = select_tokens(frame.lazy(), **settings)
    assert lazy.collect(engine="streaming").equals(got)


def test_chance_needs_no_scores():
    frame = segments([None, [1.0] * 10, [1.0] * 10])
    got = select_tokens(frame.drop("scores"), method="random", chosen_ratio=0.3, rejected_ratio=0.5)["selected"]
    assert got.list.sum().to_list() == [None, 3, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "method must be one of top_k, threshold, random, got 'best'"),
        ({"method": "threshold"}, "chosen_threshold and rejected_threshold must be given with method 'threshold'"),
        ({"method": "threshold", "chosen_ratio": 0.3}, "chosen_ratio and rejected_ratio must be left out with method"),
        ({"method": "random", "chosen_threshold": 0.3}, "rejected_threshold must be left out with method 'random'"),
        ({"method": "threshold", "chosen_threshold": math.nan}, "chosen_threshold must be a number, got nan"),
        ({"seed": 1}, "seed must be left out with method 'top_k', got 1; choose method='random'"),
        ({"method": "threshold", "chosen_threshold": 1, "rounding": "floor"}, "rounding must be left out with method"),
        ({"chosen_ratio": "0.5"}, r"chosen_ratio must be a number, got '0.5'; in \(0, 1\]"),
        ({"method": "threshold", "chosen_threshold": "1"}, "chosen_threshold must be a number, got '1'"),
        ({"method": "random", "chosen_ratio": 0.3, "seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"minimum": 1.5}, "minimum must be a whole number, got 1.5"),
        ({"excluded_ids": ["a"]}, "excluded_ids must be a whole number, got 'a'"),
        ({"excluded_ids": 5}, "excluded_ids must be a list of token ids, got 5"),
        ({"minimum": -1}, "minimum must be >= 0, got -1"),
        ({"excluded_ids": [-1]}, r"excluded_ids must be token ids, .* got \[-1\]"),
        ({"method": "random", "chosen_ratio": 0.3, "seed": -1}, r"seed must be in \[0, 2\^64\), got -1"),
    ],
)
def test_settings_of_select_tokens(settings, message):
    with pytest.raises(ConfigError, match=message):
        select_tokens(segments([None, [1.0], [1.0]]), **settings)


def test_ids_and_lengths_are_checked():
    scores = pl.Series([[1.0], [2.0]], dtype=LISTS)
    with pytest.raises(ConfigError, match="ids and excluded_ids must be given together"):
        top_k_mask(scores, 0.3, excluded_ids=[1])
    with pytest.raises(ConfigError, match=r"together, got 'excluded_ids \(1,\) without ids'; ids= are the tokens'"):
        top_k_mask(scores, 0.3, excluded_ids=[1])
    with pytest.raises(ConfigError, match="ids and excluded_ids must be given together"):
        top_k_mask(scores, 0.3, ids=scores)
    with pytest.raises(DataError, match="row 1: ids has 2 entries for 1 scores"):
        top_k_mask(scores, 0.3, ids=pl.Series([[1], [1, 2]]), excluded_ids=[1])
    for kind in (pa.list_view(pa.float32()), pa.large_list_view(pa.float32())):
        with pytest.raises(DataError, match=r"a column of Arrow type .*list_view.* cannot be read .*cast it"):
            top_k_mask(pa.array([[1.0]], kind), 0.3)
    with pytest.raises(ConfigError, match="ratio must be a number, got None"):
        top_k_mask(scores, None)
    with pytest.raises(ConfigError, match="largest must be True or False, got 'no'"):
        top_k_mask(scores, 0.3, largest="no")
    with pytest.raises(DataError, match=r"ids must be lists of UInt32, got .*String"):
        top_k_mask(scores, 0.3, ids=pl.Series([["a"], ["b"]]), excluded_ids=[1])
    with pytest.raises(ConfigError, match="rows must be given for expressions"):
        random_mask(pl.col("ids"), 0.3, seed=0)
    with pytest.raises(DataError, match="lengths must be >= 0, got -1"):
        random_mask(pl.Series([1, -1]), 0.3, seed=0)
    with pytest.raises(DataError, match="lengths must be whole numbers or lists, got Float64"):
        random_mask(pl.Series([1.0]), 0.3, seed=0)
    with pytest.raises(DataError, match="column 'r' does not fit UInt64"):
        random_mask(pl.Series([1]), 0.3, seed=0, rows=pl.Series("r", [-1]))
    with pytest.raises(DataError, match="column 'r' must have no nulls, got one at line 1"):
        random_mask(pl.Series([1, 2]), 0.3, seed=0, rows=pl.Series("r", [1, None]))
    with pytest.raises(DataError, match=r"a column must be a Polars expression or Series, .* got list"):
        top_k_mask([[1.0]], 0.3)


def test_nothing_to_select_gives_all_false():
    frame = segments([None, [math.nan, 1.0], []], mask=[[], [False, False], []])
    assert select_top_k(frame)["selected"].to_list() == [None, [False, False], []]


def test_by_chance_a_null_mask_is_called_so():
    frame = segments([None, [1.0], [0.5]], mask=[[], None, [True]]).drop("scores")
    with pytest.raises(DataError, match="column mask: row 7: mask is null; a response needs one mask bit per token"):
        select_tokens(frame, method="random", chosen_ratio=0.3, rejected_ratio=0.3)


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
    with pytest.raises(DataError, match=r"no column 'scores' \(List\(Float32\)\)$"):
        select_top_k(frame.with_columns(score=pl.lit(1.0, pl.Float32)).drop("scores"))
    with pytest.raises(DataError, match=r"column 'scores' must be .*Float32.*, got .*String"):
        select_top_k(frame.cast({"scores": pl.List(pl.String)}))
    with pytest.raises(DataError, match="scores must be lists of Float32"):
        top_k_mask(pl.Series([["1"]]), 0.5)


@pytest.mark.parametrize("kind", [pl.Float64, pl.Int64, pl.UInt8, pl.Decimal(10, 2)])
def test_scores_of_any_width_are_compared_as_float32(kind):
    scores = pl.Series("scores", [[3, 1, 2, 0], None, [5, 4]], dtype=pl.List(kind))
    for column in (scores, scores.to_arrow()):
        found = top_k_mask(column, 0.5)
        assert pl.Series(found).to_list() == [[True, False, True, False], None, [True, False]]
        assert pl.Series(threshold_mask(column, 2.0)).to_list() == [[True, False, True, False], None, [True, True]]
    frame = pl.DataFrame(
        {
            "row": pl.Series([0, 0, 0], dtype=pl.UInt64),
            "kind": ["chosen", "prompt", "rejected"],
            "scores": scores,
            "mask": [[True] * 4, None, [True] * 2],
        }
    )
    for table in (frame, frame.lazy()):
        selected = select_top_k(table, chosen_ratio=0.5, rejected_ratio=0.5).lazy().collect()["selected"].to_list()
        assert selected == [[True, False, True, False], None, [False, True]]


def test_scores_that_float32_lacks_are_refused():
    with pytest.raises(DataError, match=r"top_k_mask: scores must hold numbers of float32, .*got 1e\+39; scale them"):
        top_k_mask(pl.Series([[1.0, 1e39]]), 0.5)


THREADS = """
import hashlib, numpy as np, pyarrow as pa
from pyprefopt.data.batching.selection import top_k_mask
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
