"""User weights through reading, tokenization, truncation, selection and packing, against plain Python."""

from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt import data
from pyprefopt.data.store.segments import USER_WEIGHTS, SegmentStore
from pyprefopt.data.tokenization.segments import tokenize_rows
from pyprefopt.data.tokenization.token_columns import TokenColumn, attach_weights, weight_columns
from pyprefopt.errors import DataError
from tests.data.frames import byte_tokenizer
from tests.reference import weights as twin

WEIGHT = st.integers(0, 64).map(lambda number: number / 8)  # sums of these are exact
TEXT = st.text("ab cé\n漢😀", min_size=1, max_size=24).filter(lambda text: text.strip())
SPANS = pl.List(pl.Struct({"start": pl.Int64, "end": pl.Int64, "weight": pl.Float64}))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return data.load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("t")), eos_token="</s>", chat_template="chatml")


@st.composite
def spans_of(draw, text):
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    spans = [{"start": start, "end": end, "weight": draw(WEIGHT)} for start, end in pairs]
    return draw(st.permutations(spans))


@st.composite
def span_rows(draw):
    rows = []
    for number in range(draw(st.integers(1, 4))):
        chosen, rejected = draw(TEXT), draw(TEXT) + "b"
        weights = {
            f"{side}_weights": draw(st.none() | spans_of(text))
            for side, text in (("chosen", chosen), ("rejected", rejected))
        }
        rows.append({"prompt": f"p{number}", "chosen": chosen + "a", "rejected": rejected, **weights})
    return rows


def frame_of(rows, kind=SPANS):
    schema = {"prompt": pl.String, "chosen": pl.String, "rejected": pl.String}
    return pl.DataFrame(rows, {**schema, "chosen_weights": kind, "rejected_weights": kind})


def attached(rows, tokenizer, kind=SPANS, **limits):
    frame = data.read_preferences(frame_of(rows, kind))
    assert weight_columns(frame.columns) == ["chosen_weights", "rejected_weights"]
    return attach_weights(tokenize_rows(frame, tokenizer, **limits).segments, frame)


def places(line):
    return [None if s is None else (s, e) for s, e in zip(line["starts"], line["ends"], strict=True)]


def lines_of(segments):
    return segments.filter(pl.col("segment") > 0).iter_rows(named=True)


@settings(max_examples=80, deadline=None)
@given(rows=span_rows())
def test_spans_equal_the_twin(rows, tokenizer):
    segments, rejects = attached(rows, tokenizer)
    assert rejects.is_empty()
    assert segments.schema[USER_WEIGHTS] == pl.List(pl.Float32)
    assert segments.filter(segment=0)[USER_WEIGHTS].null_count() == len(rows)
    for line in lines_of(segments):
        row, side = rows[line["row"]], line["kind"]
        assert line[USER_WEIGHTS] == twin.from_spans(row[side], row[f"{side}_weights"] or [], places(line))


def with_weight_lists(texts, tokenizer, draw):
    """Pairs of the texts with a weight for every content token, and the weights by (row, side)."""
    rows = [{"prompt": "p", "chosen": c + "a", "rejected": r + "b"} for c, r in texts]
    segments = tokenize_rows(data.read_preferences(pl.DataFrame(rows)), tokenizer).segments
    for line in lines_of(segments):
        count = sum(place is not None for place in places(line))
        weights = st.none() | st.lists(WEIGHT, min_size=count, max_size=count)
        rows[line["row"]][f"{line['kind']}_weights"] = draw(weights)
    return rows


@settings(max_examples=60, deadline=None)
@given(
    data_=st.data(),
    texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    limit=st.none() | st.integers(16, 40),
)
def test_lists_equal_the_twin_whatever_max_tokens_cuts(data_, texts, limit, tokenizer):
    rows = with_weight_lists(texts, tokenizer, data_.draw)
    segments, rejects = attached(rows, tokenizer, pl.List(pl.Float64), max_tokens=limit)
    assert rejects.is_empty()
    for line in lines_of(segments):
        given_ = rows[line["row"]][f"{line['kind']}_weights"]
        assert line[USER_WEIGHTS] == (twin.from_list(given_, places(line)) if given_ else [1.0] * len(line["ids"]))


@pytest.mark.parametrize("cut_end", ["none", "eos", "template"])
@settings(max_examples=25, deadline=None)
@given(rows=span_rows(), ratio=st.sampled_from([0.1, 0.5, 0.75]), seed=st.integers(0, 9), layout=st.booleans())
def test_truncation_selection_and_packing_keep_each_token_its_weight(rows, ratio, seed, layout, cut_end, tokenizer):
    whole, _ = attached(rows, tokenizer)
    cut = data.truncate(whole, ratio=ratio, cut_end=cut_end, tokenizer=tokenizer)
    cut = data.select_tokens(cut, method="random", chosen_ratio=0.5, rejected_ratio=0.7, seed=seed)
    for line, before in zip(lines_of(cut), lines_of(whole), strict=True):
        row, side = rows[line["row"]], line["kind"]
        expected = twin.from_spans(row[side], row[f"{side}_weights"] or [], places(line))
        assert line[USER_WEIGHTS] == expected
        content = sum(place is not None for place in places(line))
        first = next(at for at, place in enumerate(places(before)) if place is not None)
        assert line[USER_WEIGHTS][: first + content] == before[USER_WEIGHTS][: first + content]
    store = SegmentStore.from_frame(cut)
    packer = data.Packer(
        store, layout="shared" if layout else "separate", selected=cut["selected"], user_weights=cut[USER_WEIGHTS],
        chosen_ratio=0.5, rejected_ratio=0.7,
    )  # fmt: skip
    table, seen = cut.to_dicts(), 0
    for batch in packer.pack(max_tokens=400):
        for r, target, position, weight in zip(
            batch.response_index, batch.target_ids, batch.token_position, batch.user_weights, strict=True
        ):
            line = table[batch.response_line[r]]
            at = [t for t, written in enumerate(line["mask"]) if written][position]
            assert line["selected"][at]
            assert (line["ids"][at], line[USER_WEIGHTS][at]) == (target, weight)
            seen += 1
    kept = [zip(line["selected"], line[USER_WEIGHTS], strict=True) for line in table if line["selected"]]
    assert seen == sum(selected and weight != 0 for line in kept for selected, weight in line)


def test_by_hand(tokenizer):
    rows = [{"prompt": "p", "chosen": "c ab é", "rejected": "c ab",
             "chosen_weights": [{"start": 5, "end": 6, "weight": 3}, {"start": 2, "end": 3, "weight": 0}],
             "rejected_weights": None}]  # fmt: skip
    segments, _ = attached(rows, tokenizer)
    chosen = dict(zip(*(segments[1, name] for name in ("starts", USER_WEIGHTS)), strict=True))
    # c; " a" whose space does not count; b; the space alone; the two bytes of é; the template's end of turn
    assert chosen == {0: 1.0, 1: 0.0, 3: 1.0, 4: 1.0, 5: 3.0, None: 1.0}
    assert set(segments[2, USER_WEIGHTS]) == {1.0}


def json_rows(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIR = {"prompt": "why", "chosen": "c ab", "rejected": "b"}


def span(start, end, weight=2.0):
    return {"start": start, "end": end, "weight": weight}


@pytest.mark.parametrize(
    ("weights", "place", "value", "rule"),
    [
        ([span(0, 1), span(2, 5)], "[1]", "'end': 5", "in the text, 0 <= start < end <= 4 characters"),
        ([span(-1, 1)], "[0]", "-1", "in the text"),
        ([span(2, 2)], "[0]", "2", "start < end"),
        ([span(2, 4), span(0, 3)], "[1]", "'start': 0", "must not overlap"),
        ([span(0, 1, -0.5)], "[0]", "-0.5", "finite number >= 0"),
        ([span(0, 1, 1e39)], "[0]", "1e+39", "finite number >= 0"),
        ([span(0, 1), span(1, 2, None)], "[1]", "None", "start, end and weight"),
        ([1.0, 2.0], "", "[1.0, 2.0]", "for each of the 3 tokens of the content, not 2"),
        ([1.0] * 30, "", "1.0, 1.0,  …]", "for each of the 3 tokens of the content, not 30"),
        ([1.0, 2.0, 1.0, 1.0], "", "1.0", "for each of the 3 tokens of the content, not 4"),
        ([], "", "[]", "for each of the 3 tokens"),
        ([1.0, float("nan"), 1.0], "[1]", "nan", "finite number >= 0"),
        ([1.0, None, 1.0], "[1]", "None", "finite number >= 0"),
        ([1.0, 1.0, -2.0], "[2]", "-2.0", "finite number >= 0"),
    ],
)
def test_bad_weights_are_bad_rows(weights, place, value, rule, tokenizer):
    fine = [span(0, 1)] if weights and isinstance(weights[0], dict) else [1.0, 0.5, 1.0]
    rows = [PAIR | {"chosen_weights": fine}, PAIR | {"chosen_weights": weights}]
    frame = data.read_preferences(pl.DataFrame(rows))
    segments, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    assert segments["row"].unique().to_list() == [0]
    (bad,) = rejects.to_dicts()
    assert (bad["row"], bad["field"], bad["reason"]) == (1, f"chosen_weights{place}", "bad_weights")
    assert value in bad["value"]
    assert rule in bad["rule"]
    assert bad["remedy"]


CREDITS = TokenColumn("credits", noun="credit", default=0.0, signed=True)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([-1.0, 0.5, 0.0], [-1.0, 0.5, 0.0, 0.0]),
        ([span(2, 3, -2.0), span(3, 4, 1.0)], [0.0, -2.0, 1.0, 0.0]),
        (None, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_values_of_another_name_may_be_negative_and_are_0_elsewhere(given_, expected, tokenizer):
    row = PAIR | {"chosen_credits": given_, "chosen_weights": [9.0], "rejected_weights": None}
    frame = data.read_preferences(pl.DataFrame([row]))
    assert weight_columns(frame.columns, CREDITS) == ["chosen_credits"]
    segments, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame, CREDITS)
    assert rejects.is_empty()
    assert [*segments[1, USER_WEIGHTS].to_list()[:3], segments[1, USER_WEIGHTS][-1]] == expected
    assert set(segments[2, USER_WEIGHTS]) == {0.0}


@pytest.mark.parametrize(
    ("given_", "rule", "remedy"),
    [
        ([1.0], "there must be one credit for each of the 3 tokens of the content, not 1", "count the tokens"),
        ([1.0, None, 1.0], "a credit must be a finite number", "mend it"),
        ([span(0, 1, -1e39)], "a credit must be a finite number", "mend it"),
    ],
)
def test_errors_call_them_by_their_name(given_, rule, remedy, tokenizer):
    frame = data.read_preferences(pl.DataFrame([PAIR | {"rejected_credits": None, "chosen_credits": given_}]))
    _, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame, CREDITS)
    assert rejects[0, "field"].startswith("chosen_credits")
    assert rejects[0, "rule"] == rule
    assert rejects[0, "remedy"].startswith(remedy)


def test_the_first_fault_of_a_row_is_reported_once(tokenizer, tmp_path):
    row = PAIR | {"chosen_weights": [span(0, 9), span(1, 2, -1)], "rejected_weights": [-1.0]}
    frame = data.read_preferences(json_rows(tmp_path, [row]))
    segments, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    assert segments.is_empty()
    assert rejects["field"].to_list() == ["chosen_weights[0]"]


@pytest.mark.parametrize(
    "column", ["1.0", [["a"]], [{"start": 0.5, "end": 1, "weight": 1}], [{"start": 0, "end": 1}], 1]
)
def test_columns_of_other_types_are_reported(column, tokenizer, tmp_path):
    frame = data.read_preferences(json_rows(tmp_path, [PAIR | {"chosen_weights": column}]))
    with pytest.raises(DataError, match="column 'chosen_weights' must hold lists of numbers"):
        attach_weights(tokenize_rows(frame, tokenizer).segments, frame)


@pytest.mark.parametrize("column", [None, []])
def test_columns_without_a_weight_weigh_one(column, tokenizer, tmp_path):
    frame = data.read_preferences(json_rows(tmp_path, [PAIR | {"chosen_weights": column}]))
    segments, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    assert rejects.is_empty()
    assert set(segments[1, USER_WEIGHTS]) == {1.0}


def test_spans_of_a_text_that_was_cut_end_with_it(tokenizer, tmp_path):
    row = PAIR | {"chosen_weights": [span(0, 1, 3), span(1, 4, 2)], "rejected_weights": [span(0, 1, 5)]}
    short = data.truncate(data.read_preferences(json_rows(tmp_path, [row])), length=3, unit="characters")
    segments, rejects = attach_weights(tokenize_rows(short, tokenizer).segments, short)
    assert rejects.is_empty()
    assert segments[1, USER_WEIGHTS].to_list() == [3.0, 2.0]  # c, " a"
    assert segments[2, USER_WEIGHTS][0] == 5.0


def candidates(weights):
    return {"prompt": "why", "responses": ["c ab", "b", "a"], "scores": [3.0, 2.0, 1.0], "responses_weights": weights}


def test_candidates(tokenizer, tmp_path):
    rows = [
        candidates([[span(0, 1, 3)], None, []]), candidates(None), candidates([None, [span(0, 1, 0)], [span(0, 1, 7)]]),
        candidates([None, None]), candidates([None, None, [span(0, 2)]]),
    ]  # fmt: skip
    frame = data.read_candidates(json_rows(tmp_path, rows))
    segments, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    first = segments.filter(pl.col("segment") > 0)[USER_WEIGHTS].list.first().to_list()
    assert first == [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 7.0]
    assert rejects["field"].to_list() == ["responses_weights", "responses_weights[2][0]"]
    assert "one entry for each of the 3 responses, got 2" in rejects[0, "rule"]


def test_tokens_without_places_are_refused(tokenizer):
    frame = data.read_preferences(pl.DataFrame([PAIR]))
    with pytest.raises(DataError, match="offsets=True"):
        attach_weights(tokenize_rows(frame, tokenizer, offsets=False).segments, frame)


# -- files: prepared folders, instructions, one response a row


def prepared(source, tokenizer, out, **settings):
    from pyprefopt.data.preparation.job import prepare

    return prepare(str(source), tokenizer, out, **settings)


def weighted_pairs(count):
    rows = []
    for number in range(count):
        given_ = ([span(0, 1, number)], None, [])[number % 3]
        rows.append(PAIR | {"prompt": f"p{number}", "chosen_weights": given_, "rejected_weights": [number / 2]})
    return rows


def columns_of(segments):
    store = SegmentStore.from_frame(segments)
    names = ["row", "segment", "kind", "ids", "mask", USER_WEIGHTS]
    return store.table.select(names).combine_chunks()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("truncation", [{}, {"ratio": 0.5, "cut_end": "eos"}])
def test_prepared_folders_bring_the_weights_along(kind, truncation, tokenizer, tmp_path, monkeypatch):
    from pyprefopt.data.files import parts

    monkeypatch.setattr(parts, "BLOCK_BYTES", 600)
    monkeypatch.setattr(parts, "UNIT_ROWS", 4)
    rows = weighted_pairs(20)
    rows[13]["rejected_weights"] = [1.0, 2.0]
    path = json_rows(tmp_path, rows)
    if kind == "parquet":
        path = tmp_path / "pairs.parquet"
        data.read_preferences(tmp_path / "pairs.jsonl").drop("row").write_parquet(path)
    store = prepared(path, tokenizer, tmp_path / "out", truncation=truncation, offsets=False, on_error="skip")
    frame = data.read_preferences(path)
    segments, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    if truncation:
        segments = data.truncate(segments, **truncation, tokenizer=tokenizer)
    assert len(store.manifest["shards"]) > 1
    assert columns_of(pl.DataFrame(store.table)).equals(columns_of(segments))
    assert store.manifest["rejected"] == {"bad_weights": 1} == {rejects[0, "reason"]: 1}
    (bad,) = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert (bad["row"], bad["field"], bad["file"]) == (13, "rejected_weights", str(path))


def test_a_folder_without_weights_has_no_such_column(tokenizer, tmp_path):
    store = prepared(json_rows(tmp_path, [PAIR | {"chosen_cut": 0}]), tokenizer, tmp_path / "out")
    assert USER_WEIGHTS not in store.table.column_names


@pytest.mark.parametrize("row", [PAIR, {"prompt": "why", "response": "b"}])
def test_weights_that_only_later_rows_have_are_reported(row, tokenizer, tmp_path, monkeypatch):
    from pyprefopt.data.files import parts

    monkeypatch.setattr(parts, "HEAD_BYTES", 100)
    name = "chosen_weights" if "chosen" in row else "response_weights"
    path = json_rows(tmp_path, [row] * 20 + [row | {name: [span(0, 1)]}])
    with pytest.raises(DataError, match=f"the field '{name}' is in rows after the first ones"):
        prepared(path, tokenizer, tmp_path / "out")
    if name == "response_weights":
        with pytest.raises(DataError, match=f"the field '{name}' is in rows after the first ones"):
            data.read_instructions(path)


@pytest.mark.parametrize("typed", [False, True])
def test_instructions(typed, tokenizer, tmp_path):
    rows = [
        {"prompt": "why", "response": "c ab", "other": 1, "response_weights": w} for w in ([span(0, 1, 4)], None, [])
    ]
    frame = data.read_instructions(pl.DataFrame(rows) if typed else json_rows(tmp_path, rows))
    assert frame.columns == ["row", "prompt", "response", "response_weights"]
    segments, rejects = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    assert rejects.is_empty()
    assert segments.filter(segment=1)[USER_WEIGHTS].list.first().to_list() == [4.0, 1.0, 1.0]


def test_one_response_a_row(tokenizer, tmp_path):
    rows = [
        {"prompt": "why", "response": r, "score": 1, "response_weights": [span(0, 1, n)]} for n, r in enumerate("ab")
    ]
    frame = data.read_candidates(json_rows(tmp_path, rows), format="candidate_rows")
    segments, _ = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    assert segments.filter(pl.col("segment") > 0)[USER_WEIGHTS].list.first().to_list() == [0.0, 1.0]


def test_lines_are_worked_on_some_at_a_time(tokenizer, tmp_path, monkeypatch):
    frame = data.read_preferences(json_rows(tmp_path, weighted_pairs(9)))
    whole = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    monkeypatch.setattr("pyprefopt.data.tokenization.token_columns._LINES", 2)
    parts = attach_weights(tokenize_rows(frame, tokenizer).segments, frame)
    assert all(one.equals(other) for one, other in zip(whole, parts, strict=True))
    assert whole[0].filter(segment=1)[USER_WEIGHTS].list.first().to_list() == [0, 1, 1, 3, 1, 1, 6, 1, 1]
