"""Candidates to pairs, against the rule written plainly; UltraFeedback by aspect."""

from __future__ import annotations

import json
import math
import random
from itertools import permutations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pyprefopt.cli import main
from pyprefopt.data import pick_pairs, read_candidates, read_preferences
from pyprefopt.data.reading.aspects import ASPECTS
from pyprefopt.errors import ConfigError, DataError


def made_up(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with ties, equal texts, missing scores, and one response alone."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        texts = [chance.choice("abcdefgh") for _ in range(chance.randint(1, 5))]
        scores = [chance.choice([None, 0.1, 0.5, 0.8, 0.9, 2.0]) for _ in texts]
        rows.append({"prompt": f"p{number}", "responses": texts, "scores": scores, "id": number})
    return rows


def allowed(row: dict[str, Any], margin: float) -> set[tuple[int, int]]:
    """Every pair of positions that may be chosen and rejected."""
    texts, scores = row["responses"], row["scores"]
    return {
        (i, j)
        for i, j in permutations(range(len(texts)), 2)
        if scores[i] is not None and scores[j] is not None and texts[i] != texts[j]
        and scores[i] > scores[j] and scores[i] - scores[j] > margin - 1e-5
    }  # fmt: skip


def places(rows: list[dict[str, Any]], **options: Any) -> dict[int, set[tuple[int, int]]]:
    pairs = pick_pairs(pl.DataFrame(rows), **options).pairs
    found: dict[int, set[tuple[int, int]]] = {number: set() for number in range(len(rows))}
    for pair in pairs.iter_rows(named=True):
        row, i, j = rows[pair["candidates_row"]], pair["chosen_index"], pair["rejected_index"]
        assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (
            row["responses"][i],
            row["responses"][j],
        )
        assert pair["score_chosen"] == pytest.approx(row["scores"][i])
        assert pair["score_rejected"] == pytest.approx(row["scores"][j])
        assert (pair["prompt"][0]["content"], pair["id"]) == (row["prompt"], row["id"])
        found[pair["candidates_row"]].add((i, j))
    assert pairs["row"].to_list() == list(range(pairs.height))
    return found


@pytest.mark.parametrize(("pick", "margin"), [("all", None), ("all", 0.1), ("margin", 0.1), ("margin", 0.75)])
def test_every_pair_that_may_be_one_is_there(pick: str, margin: float | None) -> None:
    rows = made_up(200)
    for number, found in places(rows, pick=pick, margin=margin).items():
        assert found == allowed(rows[number], margin or 0.0), rows[number]


def test_the_best_against_the_worst() -> None:
    rows = made_up(200)
    for number, found in places(rows).items():
        row = rows[number]
        scored = [i for i, score in enumerate(row["scores"]) if score is not None]
        best = max(scored, key=lambda i: row["scores"][i], default=0)  # the first of equals
        worst = min(scored, key=lambda i: row["scores"][i], default=0)
        assert found == {(best, worst)} & allowed(row, 0.0)


def test_the_best_against_a_random_one_below_it() -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [1.0, 3.0, 3.0, 2.0], "id": 0}
    drawn = [places([row | {"id": n} for n in range(60)], pick="best_random", seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set().union(*drawn[0].values()) == {(1, 0), (1, 3)}
    assert all(len(found) == 1 for found in drawn[0].values())


def test_what_is_left_out_is_counted() -> None:
    rows = [
        {"prompt": "a", "responses": ["x", "y"], "scores": [1.0, 1.0]},
        {"prompt": "b", "responses": ["x", "x"], "scores": [1.0, 2.0]},
        {"prompt": "c", "responses": ["x", "y"], "scores": [1.0, None]},
        {"prompt": "d", "responses": ["x", "y", "z"], "scores": [1.0, 1.25, 3.0]},
        {"prompt": "e", "responses": ["x"], "scores": [1.0]},
    ]
    for pick in ("best_worst", "best_random"):
        picked = pick_pairs(pl.DataFrame(rows), pick=pick)
        assert picked.left_out == {"no_score": 1, "one_response": 2, "tie": 1, "equal_texts": 1}
        assert picked.pairs.height == 1
    picked = pick_pairs(pl.DataFrame(rows), pick="margin", margin=0.5)
    assert picked.left_out == {"no_score": 1, "one_response": 2, "tie": 1, "equal_texts": 1, "below_margin": 1}
    assert picked.pairs.height == 2


def test_settings_are_checked() -> None:
    rows = pl.DataFrame(made_up(3))
    with pytest.raises(ConfigError, match="pick must be one of best_worst, best_random, all, margin, got 'best'"):
        pick_pairs(rows, pick="best")
    with pytest.raises(ConfigError, match="margin must be given for pick margin"):
        pick_pairs(rows, pick="margin")
    with pytest.raises(ConfigError, match="margin must be > 0"):
        pick_pairs(rows, margin=0)
    with pytest.raises(DataError, match="no row has any; score the candidates first: pyprefopt rank"):
        pick_pairs(rows.drop("scores"))


def test_the_columns_of_on_policy_sets_are_known(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
    rows = [{"prompt": "q", "all_generated_responses": ["x", "y"], "all_rm_scores": [0.2, 0.7], "chosen": chat}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    for source in (pl.DataFrame(rows), tmp_path / "a.jsonl", [str(tmp_path / "a.jsonl")]):
        pairs = pick_pairs(source).pairs
        assert pairs["chosen"].to_list() == [[{"role": "assistant", "content": "y", "extra": None}]]


def rated(**ratings: str | None) -> dict[str, Any]:
    notes = {name: {"Rating": ratings.get(name, "3"), "Rationale": "why"} for name in ASPECTS}
    return {"annotations": notes, "model": "m", "response": f"r{sorted(ratings.items())}", "overall_score": 7.5}


ULTRAFEEDBACK = [
    {"source": "s", "instruction": "q", "models": ["m", "m"],
     "completions": [rated(honesty="4", truthfulness="1"), rated(honesty="N/A"), rated(honesty="2", truthfulness="5")]},
    {"source": "s", "instruction": "ü", "models": ["m"], "completions": [rated(honesty="1"), rated(honesty="2.5")]},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "frame"])
def test_ratings_of_an_aspect_are_the_scores(kind: str, tmp_path: Path) -> None:
    source: Any = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        source.write_text("\n\n".join(json.dumps(row) for row in ULTRAFEEDBACK))
    elif kind == "json":
        source.write_text(json.dumps(ULTRAFEEDBACK))
    elif kind == "parquet":
        pl.DataFrame(ULTRAFEEDBACK).write_parquet(source)
    else:
        source = pl.DataFrame(ULTRAFEEDBACK)
    scores = {
        aspect: read_candidates(source, aspect=aspect)["scores"].to_list() for aspect in ("honesty", "truthfulness")
    }
    assert scores["honesty"] == [[4.0, None, 2.0], [1.0, 2.5]]
    assert scores["truthfulness"] == [[1.0, 3.0, 5.0], [3.0, 3.0]]
    assert read_candidates(source)["scores"].to_list() == [[7.5, 7.5, 7.5], [7.5, 7.5]]
    read = read_candidates(source, aspect="honesty")
    assert read["source"].to_list() == ["s", "s"]
    assert read["responses"][1][0].to_list()[0]["content"] == ULTRAFEEDBACK[1]["completions"][0]["response"]


def test_what_has_no_aspects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"aspect must be one of .*; did you mean 'honesty'"):
        read_candidates(pl.DataFrame(ULTRAFEEDBACK), aspect="honest")
    with pytest.raises(DataError, match="needs rows of completions"):
        read_candidates(pl.DataFrame(made_up(2)), aspect="honesty")
    (tmp_path / "a.jsonl").write_text(json.dumps(made_up(1)[0]))
    with pytest.raises(DataError, match=r"a\.jsonl, row 0: .*needs rows of completions"):
        read_candidates(tmp_path / "a.jsonl", aspect="honesty")
    bad = [{"instruction": "q", "completions": [rated(honesty="good")]}]
    with pytest.raises(
        DataError, match=r'row 0, completions\[0\].score: "good" - score must be a finite number or null'
    ):
        read_candidates(pl.DataFrame(bad), aspect="honesty")
    both = pl.DataFrame([*bad, ULTRAFEEDBACK[1]])
    assert read_candidates(both, aspect="honesty", on_error="skip")["row"].to_list() == [1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_scores_that_are_named_stand_for_those_in_the_responses(kind: str, tmp_path: Path) -> None:
    """As `pyprefopt rank --prefix rm_` leaves UltraFeedback's raw set."""
    rows = [row | {"rm_scores": [float(k) for k in range(len(row["completions"]))]} for row in ULTRAFEEDBACK]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pl.DataFrame(rows).write_parquet(path)
    found = read_candidates(path, columns={"scores": "rm_scores"})
    assert found["scores"].to_list() == [row["rm_scores"] for row in rows]
    texts = [[chat[-1]["content"] for chat in row] for row in found["responses"].to_list()]
    assert texts == [[entry["response"] for entry in row["completions"]] for row in rows]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "pairs.jsonl.gz", "pairs.json"])
def test_the_command_writes_what_reading_takes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "uf.jsonl").write_text("\n".join(json.dumps(row) for row in ULTRAFEEDBACK))
    given = ["pairs", str(tmp_path / "uf.jsonl"), "--aspect", "truthfulness", "--out", str(tmp_path / name)]
    assert main(given) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{tmp_path / name}: 1 pair", "  left out, tie: 1 pairs of equal scores"]
    pairs = read_preferences(tmp_path / name)
    completions = ULTRAFEEDBACK[0]["completions"]
    assert pairs["chosen"][0].to_list()[0]["content"] == completions[2]["response"]
    assert pairs["rejected"][0].to_list()[0]["content"] == completions[0]["response"]
    assert (pairs["score_chosen"][0], pairs["score_rejected"][0], pairs["source"][0]) == (5.0, 1.0, "s")
    assert main(given) == 2
    assert "out must be a new file" in capsys.readouterr().err
    assert main([*given, "--overwrite", "--pick", "all"]) == 0
    assert "3 pairs" in capsys.readouterr().out
    assert main([*given, "--overwrite", "--margin", "9"]) == 2
    assert (
        "no pair is left to write (pairs of equal scores: 1, pairs whose scores are nearer" in capsys.readouterr().err
    )


def test_messages_keep_their_further_fields(tmp_path: Path) -> None:
    call = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}]
    row = {"prompt": [{"role": "user", "content": "q"}], "scores": [2, 1]}
    row["responses"] = [call, [{"role": "assistant", "content": "no"}]]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert main(["pairs", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o.jsonl")]) == 0
    direct = read_candidates(tmp_path / "a.jsonl")["responses"][0][0].to_list()
    assert read_preferences(tmp_path / "o.jsonl")["chosen"][0].to_list() == direct
    assert math.isclose(json.loads((tmp_path / "o.jsonl").read_text())["score_chosen"], 2)


def test_the_candidates_are_not_replaced_by_their_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]}))
    before = path.read_bytes()
    assert main(["pairs", str(path), "--out", str(tmp_path / "." / "a.jsonl"), "--overwrite"]) == 2
    assert "another file than the input" in capsys.readouterr().err
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        pick_pairs(str(path), seed=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("rating", ["4", 4, ["4"]])
def test_a_rating_that_is_no_object_is_said(rating: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = {"honesty": rating, "helpfulness": {"Rating": "4"}}
    row = {"instruction": "q", "completions": [{"response": "a", "annotations": annotations}] * 2}
    (tmp_path / "u.jsonl").write_text(json.dumps(row))
    given = ["pairs", str(tmp_path / "u.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--aspect", "honesty"]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "u.jsonl, row 0, completions[0].annotations.honesty must be an object with Rating, got" in said
