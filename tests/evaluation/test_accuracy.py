"""Accuracy of prefixes: hand-worked, against responses that are cut for real, and what must hold of any scores."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt import data
from pyprefopt.data.batching.alignment import spans_to_mask
from pyprefopt.data.embedded import write_toy
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.evaluation.accuracy import Cuts, PrefixScores, prompts_of, tables_by

CUTS = Cuts(ratios=(0.25, 0.5, 1.0), lengths=(1, 2, 3, 100))
EVERY = [Cuts((0.1, 0.5, 0.9), (1, 3), ratio_base=base, rounding=rounding)  # type: ignore[arg-type]
         for base in ("own", "shared_min") for rounding in ("ceil", "floor")]  # fmt: skip


def segments(pairs: list[tuple[list[int], list[int], list[int]]]) -> pl.DataFrame:
    """The segments of pairs of token ids: prompt, chosen, rejected."""
    lines = [
        (row, number, kind, ids, [number > 0] * len(ids))
        for row, pair in enumerate(pairs)
        for number, (kind, ids) in enumerate(zip(("prompt", "chosen", "rejected"), pair, strict=True))
    ]
    schema = {
        "row": pl.UInt64, "segment": pl.UInt16, "kind": pl.String, "ids": pl.List(pl.UInt32),
        "mask": pl.List(pl.Boolean),
    }  # fmt: skip
    return pl.DataFrame(lines, schema, orient="row")


@st.composite
def scored(draw: st.DrawFn) -> tuple[pl.DataFrame, np.ndarray]:
    """Segments of pairs with a value a response token; tokens and values are few, so that ties are many."""
    tokens = st.lists(st.integers(0, 3), min_size=1, max_size=7)
    frame = segments(draw(st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=8)))
    store = SegmentStore.from_frame(frame)
    values = st.sampled_from([-1.5, -0.25, 0.0, 0.25, 1.5])
    count = int(store.response_offsets[-1])
    return frame, np.array(draw(st.lists(values, min_size=count, max_size=count)))


def test_worked_by_hand() -> None:
    store = SegmentStore.from_frame(segments([([9], [1, 2, 3, 4], [5, 6]), ([9], [1, 1], [1, 2, 3])]))
    values = np.array([1.0, -3.0, 4.0, 1.0, 0.5, 2.0, 7.0, -8.0, 9.0, 2.0, -1.0])
    table = PrefixScores.of(store, values, Cuts(ratios=(0.5,), lengths=(1, 3))).table(prompts_of(store), samples=10)
    # prefixes of the first pair: 1 token 1 > 0.5; 3 tokens 2 < 2.5; half (2 and 1) -2 < 0.5; whole 3 > 2.5
    # of the second: both begin with token 1, a tie whatever their values; 3 tokens -1 < 10; half (1 and 2) 7 < 11
    assert table["kind"].to_list() == ["length", "length", "ratio", "ratio"]
    assert table["point"].to_list() == [1, 3, 0.5, 1]
    assert table["accuracy"].to_list() == [0.75, 0, 0, 0.5]
    assert table["ties"].to_list() == [1, 0, 0, 0]
    assert table["uncut"].to_list() == [0, 1, 0, 2]
    assert table["mean_margin"].to_list() == pytest.approx([0.25, (-0.5 - 11) / 2, (-2.5 - 4) / 2, (0.5 - 11) / 2])
    assert table["agreement"].to_list() == [0.5, 0.5, 0.5, 1]
    assert table["pairs"].to_list() == [2, 2, 2, 2]


@settings(deadline=None, max_examples=60)
@given(scored(), st.sampled_from(EVERY), st.sampled_from(["sum", "mean"]))
def test_against_responses_that_are_cut(made: tuple[pl.DataFrame, np.ndarray], cuts: Cuts, normalize: str) -> None:
    frame, values = made
    store = SegmentStore.from_frame(frame)
    scores = PrefixScores.of(store, values, cuts, normalize=normalize)  # type: ignore[arg-type]
    parts = np.split(values, store.response_offsets[1:-1])
    lists = pl.Series("values", [list(part) for part in parts], pl.List(pl.Float64))
    held = frame.with_columns(lists)
    for at, (kind, point) in enumerate(scores.points):
        rule = {"length": int(point)} if kind == "length" else {
            "ratio": point, "ratio_base": cuts.ratio_base, "rounding": cuts.rounding
        }  # fmt: skip
        cut = data.truncate(held, **rule)
        for side in ("chosen", "rejected"):
            rows = cut.filter(kind=side)["values"].to_list()
            expected = [sum(row) / (len(row) if normalize == "mean" else 1) for row in rows]
            found = getattr(scores, side)[at]
            same = [
                a == b
                for a, b in zip(*(cut.filter(kind=s)["ids"].to_list() for s in ("chosen", "rejected")), strict=True)
            ]
            for pair, tie in enumerate(same):
                if tie:
                    assert scores.chosen[at, pair] == scores.rejected[at, pair]
                else:
                    assert found[pair] == pytest.approx(expected[pair], abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(scored())
def test_what_holds_of_any_scores(made: tuple[pl.DataFrame, np.ndarray]) -> None:
    frame, values = made
    store = SegmentStore.from_frame(frame)
    scores = PrefixScores.of(store, values, CUTS)
    prompts = prompts_of(store)
    table = scores.table(prompts, samples=20)
    swapped = PrefixScores(scores.points, scores.rejected, scores.chosen, scores.uncut).table(prompts, samples=20)
    np.testing.assert_allclose(swapped["accuracy"], 1 - table["accuracy"], rtol=0, atol=1e-15)
    assert swapped["mean_margin"].to_list() == [-margin for margin in table["mean_margin"]]
    whole = table.filter(kind="ratio", point=1.0).drop("kind", "point")
    assert table.filter(kind="length", point=100.0).drop("kind", "point").equals(whole)
    assert whole["agreement"].item() == 1
    zeros = PrefixScores.of(store, np.zeros_like(values), CUTS).table(prompts, samples=20)
    assert set(zeros["accuracy"]) == {0.5}
    assert set(zeros["low"]) == set(zeros["high"]) == {0.5 if prompts.any() else None}  # none of one prompt
    assert set(zeros["ties"]) == {len(prompts)}


def test_equal_beginnings_tie_whatever_their_values() -> None:
    store = SegmentStore.from_frame(segments([([9], [1, 2, 3], [1, 2, 4])]))
    noise = np.array([0.1, 0.2, 0.3, 0.1 + 1e-7, 0.2 - 3e-7, 0.1])
    table = PrefixScores.of(store, noise, Cuts(ratios=(), lengths=(1, 2))).table(np.zeros(1, np.int64), samples=5)
    assert table["accuracy"].to_list() == [0.5, 0.5, 1]


def test_tokens_outside_the_mask_count_nothing() -> None:
    frame = segments([([9], [1, 2, 3], [4, 5])])
    mask = pl.Series("mask", [[False], [True, False, True], [True, True]])
    store = SegmentStore.from_frame(frame.with_columns(mask))
    scores = PrefixScores.of(store, np.array([1.0, np.nan, 2.0, 3.0, 4.0]), Cuts(ratios=(), lengths=()))
    assert (scores.chosen.tolist(), scores.rejected.tolist()) == ([[3.0], [3.0]], [[7.0], [7.0]])  # ratio 1, and whole


def test_intervals_are_over_prompts() -> None:
    pairs = [([prompt], [1], [2]) for prompt in range(40)]
    values = np.array([1.0, 0.0] * 30 + [0.0, 1.0] * 10)
    once = SegmentStore.from_frame(segments(pairs))
    cuts = Cuts(ratios=(), lengths=())
    table = PrefixScores.of(once, values, cuts).table(prompts_of(once))
    low, accuracy, high = (table[name].item() for name in ("low", "accuracy", "high"))
    assert accuracy == 0.75
    assert low == pytest.approx(0.75 - 1.96 * np.sqrt(0.75 * 0.25 / 40), abs=0.03)
    assert high == pytest.approx(0.75 + 1.96 * np.sqrt(0.75 * 0.25 / 40), abs=0.03)
    # Five pairs a prompt that all say the same are no more evidence than one.
    five = SegmentStore.from_frame(segments([pair for pair in pairs for _ in range(5)]))
    repeated = PrefixScores.of(five, np.concatenate([np.tile(values[i : i + 2], 5) for i in range(0, 80, 2)]), cuts)
    assert (
        repeated.table(prompts_of(five))
        .select("accuracy", "low", "high")
        .equals(table.select("accuracy", "low", "high"))
    )


def test_groups_have_tables_of_their_own() -> None:
    store = SegmentStore.from_frame(segments([([1], [1], [2]), ([2], [1], [2]), ([3], [1], [2])]))
    scores = PrefixScores.of(store, np.array([1.0, 0, 0, 1, 1, 0]), Cuts(ratios=(), lengths=()))
    taken = tables_by(scores, prompts_of(store), ["a", None, "a"], "pairs")
    assert taken.columns[:2] == ["by_pairs", "kind"]
    table = tables_by(scores, prompts_of(store), ["a", None, "a"], "source")
    assert table.select("source", "accuracy", "pairs").rows() == [("(none)", 0.0, 1), ("a", 1.0, 2)]


@pytest.mark.parametrize("signal", ["early", "late", "even"])
def test_the_depth_of_a_planted_signal(tmp_path, signal: str) -> None:
    """Planted tokens score 1 on the chosen side and noise is everywhere: the depth is where the planted ones end."""
    toy = write_toy(tmp_path, train=8, test=400, sft=8, signal=signal)
    pairs, tokenizer = data.read_preferences(toy.test), data.load_tokenizer(toy.tokenizer)
    frame = data.tokenize(pairs, tokenizer, offsets=True)
    store = SegmentStore.from_frame(frame)
    planted = pl.read_parquet(toy.test).select("chosen_planted", "rejected_planted")
    spans = [s for row in planted.rows() for s in (None, *row)]
    marks = spans_to_mask(pl.Series(spans, dtype=planted["chosen_planted"].dtype), frame["starts"], frame["ends"])
    marked = np.concatenate(marks.filter(pl.Series(store.segments != 0)).to_list())
    sides = np.repeat(store.kinds, np.diff(store.response_offsets))
    noise = np.random.default_rng(0).normal(0, 1, len(sides))
    signed = np.where(sides == 1, 1.0, -1.0) * marked * 0.4 + noise
    scores = PrefixScores.of(store, signed, Cuts())
    table = scores.table(prompts_of(store), samples=200).filter(kind="ratio")
    accuracy = dict(zip(table["point"].to_list(), table["accuracy"].to_list(), strict=True))
    depth = scores.depth(prompts_of(store), within=0.05, samples=200)["ratio"]
    if signal == "early":
        assert min(accuracy[0.6], accuracy[0.7], accuracy[0.8]) > accuracy[1.0] - 0.02  # flat, but for the noise
        assert depth["point"] <= 0.6
    elif signal == "late":
        assert abs(accuracy[0.3 if 0.3 in accuracy else 0.33] - 0.5) < 0.08
        assert accuracy[1.0] > accuracy[0.5] + 0.15
        assert depth["point"] >= 0.8
    else:
        assert accuracy[0.2] < accuracy[0.5] < accuracy[1.0]
        assert 0.5 <= depth["point"] <= 1
    assert depth["low"] <= depth["point"] <= depth["high"]


@pytest.mark.parametrize(("within", "point"), [(0.25, 2), (0.2, 3), (0.0, 3)])
def test_the_depth_may_be_as_much_less_right(within: float, point: int) -> None:
    """Of four pairs one token ranks 2, two tokens 3 and three tokens 4 right."""
    store = SegmentStore.from_frame(segments([([9], [1, 1, 1], [2, 2, 2])] * 4))
    decided = [[1, 1, 1], [1, 1, 1], [-1, 2, 1], [-2, 1, 3]]  # the chosen response's values; the rejected one's are 0
    values = np.array([value for row in decided for value in (*row, 0, 0, 0)], np.float64)
    scores = PrefixScores.of(store, values, Cuts(ratios=(), lengths=(1, 2, 3)))
    assert scores.depth(np.arange(4), within=within, samples=5)["length"]["point"] == point


def test_depth_without_a_point_that_is_enough() -> None:
    store = SegmentStore.from_frame(segments([([1], [1, 1], [2, 2])]))
    scores = PrefixScores.of(store, np.array([-1.0, 5, 1, 1]), Cuts(ratios=(), lengths=(1,)))
    assert scores.depth(np.zeros(1, np.int64), samples=5) == {
        "length": {"point": None, "low": None, "high": None},
        "ratio": {"point": 1.0, "low": None, "high": None},  # of one prompt no interval
    }


def test_bad_cuts_and_bad_data() -> None:
    for wrong, words in (
        ({"ratios": (0.0,)}, r"ratios must be in \(0, 1\], got 0"),
        ({"lengths": (0,)}, "lengths .* > 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            Cuts(**wrong)
    store = SegmentStore.from_frame(
        segments([([1], [1], [2])]).with_columns(kind=pl.Series(["prompt", "response", "response"]))
    )
    with pytest.raises(DataError, match="there must be pairs"):
        PrefixScores.of(store, np.zeros(2), Cuts())


def test_agreement_and_depth_are_against_whole_responses_whatever_ratio_1_is() -> None:
    """Of the longer response ratio 1 of the pair's shorter one keeps two tokens, and its third decides the pair."""
    store = SegmentStore.from_frame(segments([([9], [1, 2, 3], [4, 5])] * 3))
    values = np.array([0.0, 0.0, 5.0, 1.0, 1.0] * 3)
    scores = PrefixScores.of(store, values, Cuts(ratios=(), lengths=(2,), ratio_base="shared_min"))
    table = scores.table(np.zeros(3, np.int64), samples=5)
    assert table.select("kind", "accuracy", "uncut", "agreement").rows() == [("length", 0, 0, 0), ("ratio", 0, 0, 0)]
    assert scores.depth(np.zeros(3, np.int64), samples=5)["ratio"]["point"] is None
    own = PrefixScores.of(store, values, Cuts(ratios=(), lengths=())).table(np.zeros(3, np.int64), samples=5)
    assert own.select("accuracy", "uncut", "agreement").row(0) == (1, 3, 1)


def test_a_rounding_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="rounding must be one of ceil, floor, got 'up'"):
        Cuts(rounding="up")  # type: ignore[arg-type]
