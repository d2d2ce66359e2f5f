"""Candidates as training data: read, checked, held out, packed whole, ranked, from raw files and prepared folders."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import pyprefopt
from pyprefopt import data
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.embedded import write_candidates
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.losses import RRHF
from pyprefopt.losses.method import weighted_sums
from pyprefopt.settings.config import RunConfig
from pyprefopt.training.metrics import ranked_pairs, ranking_margins
from tests.pipeline.runs import losses, small
from tests.stages.made import build_data


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_candidates(tmp_path_factory.mktemp("candidates"), train=32, test=16)


def config(inputs: Path, out: Path, sets: tuple[Path, Path], **settings: Any) -> RunConfig:
    alone = {
        "method": "rrhf",
        "base": {},
        "oracle": {},
        "policy_init": None,
        "max_steps": 2,
        "max_tokens_per_batch": 600,
    }
    return small(inputs, out, **{"data": str(sets[0]), "eval_data": str(sets[1])} | alone | settings)


def test_a_run_on_candidates(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    result = pyprefopt.train(config(inputs, tmp_path, sets, max_steps=8, global_batch_size=8))
    assert set(result.summary["stages"]) == {"data", "policy"}
    assert result.summary["stages"]["data"]["train"]["rows"] == 32
    values = [loss for _, _, loss in losses(tmp_path)]
    assert sum(values[-2:]) < sum(values[:2])
    policy = result.summary["stages"]["policy"]
    assert policy["eval_after"]["eval_ranking_accuracy"] == pytest.approx(accuracy(result.policy, tmp_path), abs=1e-9)


def accuracy(policy: Path, run: Path) -> float:
    """The share of two responses of a prompt that the mean log-prob ranks as the scores do, response by response."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    rows = pl.DataFrame(SegmentStore.open(run / "stages/data/eval").table).partition_by("row", maintain_order=True)
    ranked = []
    for row in rows:
        prompt, *responses = row.to_dicts()
        means = []
        for response in responses:
            ids = torch.tensor([prompt["ids"] + response["ids"]])
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            scored = torch.tensor(response["mask"])
            means.append(float(logps[len(prompt["ids"]) - 1 :][scored].mean()))
        scores = [response["score"] for response in responses]
        ranked += [means[i] > means[j] for i, j in permutations(range(len(means)), 2) if scores[i] > scores[j]]
    assert len(ranked) == 6 * len(rows)
    return sum(ranked) / len(ranked)


def test_all_responses_of_a_prompt_share_a_micro_batch_whatever_the_packing(
    inputs: Path, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    build_data(config(inputs, tmp_path / "run", sets), tmp_path / "data")
    store = SegmentStore.open(tmp_path / "data/train")
    scores = pl.read_parquet(sets[0])["scores"].to_list()
    totals = []
    for layout, budget in (("shared", 200), ("shared", 4000), ("separate", 240), ("separate", 900)):
        total, seen = 0.0, []
        for packed in Packer(store, layout=layout).pack(max_tokens=budget):  # type: ignore[arg-type]
            batch = packed.to()
            for group in batch.response_group.unique():
                mine = batch.response_group == group
                (row,) = batch.response_row[mine].unique().tolist()
                seen.append(row)
                assert batch.response_score[mine].tolist() == np.float32(scores[row]).tolist()
            logps = -((batch.target_ids * 7 + batch.token_position * 3) % 11).double() / 4
            method = RRHF()
            weights = method.token_weights(batch, logps)
            sums = pyprefopt.types.Sums(policy=weighted_sums(weights.double(), logps, batch))
            total += float(method.loss(sums, batch).sum())
        totals.append(total)
        assert sorted(seen) == list(range(32))
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-6)


def test_candidates_without_scores_to_rank_are_bad_rows(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    rows = pl.read_parquet(sets[0]).to_dicts()
    rows[3]["responses"], rows[3]["scores"] = rows[3]["responses"][:1], rows[3]["scores"][:1]
    rows[5]["scores"] = None
    rows[7]["scores"][2] = None
    path = tmp_path / "sets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        pyprefopt.train(config(inputs, tmp_path / "run", sets, data=str(path)))
    message = str(caught.value)
    for words in ("3 of 48 rows cannot be used", "one_response: 1", "no_score: 2", "row 3, responses", "row 7, scores"):
        assert words in message
    result = pyprefopt.train(config(inputs, tmp_path / "run", sets, data=str(path), on_error="skip"))
    facts = result.summary["stages"]["data"]
    assert (facts["rows_in"], facts["rows_used"], facts["rows_rejected"]) == (48, 45, 3)


def test_rows_for_other_methods_are_told(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    message = r"method dpo trains on preferences, and '.*candidates-train\.parquet' holds candidates; .* method rrhf"
    with pytest.raises(ConfigError, match=message):
        build_data(config(inputs, tmp_path / "run", sets, method="dpo", data=str(sets[0])), tmp_path / "stage")


@pytest.mark.parametrize("source", ["files", "other columns", "a prepared folder"])
def test_pairs_are_sets_of_two(source: str, inputs: Path, tmp_path: Path) -> None:
    """A pair trains as the same two responses do that are given as candidates with scores 1 and 0."""
    paths = {name: inputs / f"{name}.parquet" for name in ("train", "test")}
    settings: dict[str, Any] = {}
    for name, path in paths.items():
        frame = pl.read_parquet(path)
        both = pl.concat_list("chosen", "rejected")
        frame.select("prompt", responses=both, scores=pl.lit([1.0, 0.0])).write_parquet(
            tmp_path / f"{name}-sets.parquet"
        )
    if source == "a prepared folder":
        for name, path in paths.items():
            made = prepare(path, data.load_tokenizer(inputs / "tokenizer"), tmp_path / name, max_tokens=128,
                           max_prompt_tokens=64)  # fmt: skip
            assert set(made.kinds.tolist()) == {0, 1, 2}
            paths[name] = tmp_path / name
    if source == "other columns":
        settings["columns"] = ("chosen=good", "rejected=bad")
        for name, path in paths.items():
            paths[name] = tmp_path / f"{name}-named.parquet"
            pl.read_parquet(path, columns=["prompt", "chosen", "rejected"]).rename(
                {"chosen": "good", "rejected": "bad"}
            ).write_parquet(paths[name])
    pairs = (paths["train"], paths["test"])
    sets = (tmp_path / "train-sets.parquet", tmp_path / "test-sets.parquet")
    build_data(config(inputs, tmp_path / "run", pairs, **settings), tmp_path / "pairs")
    build_data(config(inputs, tmp_path / "run", sets), tmp_path / "sets")
    for split in ("train", "eval"):
        ours, theirs = (SegmentStore.open(tmp_path / name / split) for name in ("pairs", "sets"))
        columns = ["row", "segment", "kind", "ids", "mask"]
        assert ours.table.select(columns).equals(theirs.table.select(columns))
        np.testing.assert_array_equal(ours.scores[ours.segments > 0], theirs.scores[theirs.segments > 0])
        assert np.isnan(ours.scores[ours.segments == 0]).all()


def test_rrhf_trains_on_pairs_and_its_base_learns_the_chosen(inputs: Path, tmp_path: Path) -> None:
    pairs = (inputs / "train.parquet", inputs / "test.parquet")
    base = {"learning_rate": 1e-3, "global_batch_size": 16}
    result = pyprefopt.train(config(inputs, tmp_path, pairs, base=base, policy_init="base"))
    assert set(result.summary["stages"]) == {"data", "base", "policy"}
    assert all(np.isfinite(loss) for *_, loss in losses(tmp_path))
    table, learned = (SegmentStore.open(tmp_path / "stages/data" / name).table for name in ("train", "sft"))
    assert learned["ids"].to_pylist() == [i for n, i in enumerate(table["ids"].to_pylist()) if n % 3 < 2]


def test_one_response_a_row_is_the_same_as_sets(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    frame = pl.read_parquet(sets[0]).unique("prompt", maintain_order=True)
    frame.write_parquet(tmp_path / "sets.parquet")
    single = frame.explode("responses", "scores").rename({"responses": "response", "scores": "score"})
    single.write_parquet(tmp_path / "rows.parquet")
    for name in ("sets", "rows"):
        path = str(tmp_path / f"{name}.parquet")
        build_data(config(inputs, tmp_path / "run", sets, data=path), tmp_path / name)
    stores = [SegmentStore.open(tmp_path / name / "train").table.drop_columns("row") for name in ("sets", "rows")]
    assert stores[0].equals(stores[1])


def test_whole_prompts_are_held_out(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    build_data(config(inputs, tmp_path / "run", sets, eval_data=None, eval_ratio=0.25), tmp_path / "data")
    train, test = (set(SegmentStore.open(tmp_path / "data" / split).rows.tolist()) for split in ("train", "eval"))
    assert (len(train), len(test), train & test) == (24, 8, set())


def prepared(inputs: Path, source: Path, out: Path, **settings: Any) -> str:
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    prepare(str(source), tokenizer, out, max_prompt_tokens=64, max_tokens=128, **settings)
    return str(out)


def test_a_prepared_folder_is_the_raw_file(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    folder = prepared(inputs, sets[0], tmp_path / "folder")
    made = [
        build_data(config(inputs, tmp_path / "run", sets, data=path, eval_data=None, eval_ratio=0.25), tmp_path / name)
        for name, path in (("raw", str(sets[0])), ("prepared", folder))
    ]
    for split in ("train", "eval"):
        raw, ours = (SegmentStore.open(tmp_path / name / split).table for name in ("raw", "prepared"))
        assert pl.DataFrame(ours.select(raw.column_names)).equals(pl.DataFrame(raw))
    assert made[0]["facts"] == made[1]["facts"]


def test_a_folder_of_another_kind_is_refused(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    learned = prepared(inputs, inputs / "sft.parquet", tmp_path / "sft")
    with pytest.raises(ConfigError, match=r"data must hold candidates, got .* of instructions; give it as base\.data"):
        build_data(config(inputs, tmp_path / "run", sets, data=learned), tmp_path / "stage")
    ranked = prepared(inputs, sets[0], tmp_path / "ranked")
    with pytest.raises(ConfigError, match=r"data must hold preferences, got .* of candidates; .* method rrhf"):
        build_data(config(inputs, tmp_path / "run", sets, method="dpo", data=ranked), tmp_path / "stage")
    bare = pl.read_parquet(sets[0]).with_columns(
        scores=pl.when(pl.int_range(pl.len()) != 2).then("scores")  # the third row has none
    )
    bare.write_parquet(tmp_path / "bare.parquet")
    folder = prepared(inputs, tmp_path / "bare.parquet", tmp_path / "bare")
    with pytest.raises(DataError, match=r"bare', row 2 \(and 0 more\): each response must have a score"):
        build_data(config(inputs, tmp_path / "run", sets, data=folder), tmp_path / "stage")


def test_weights_of_candidates_reach_the_loss(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    frame = pl.read_parquet(sets[0])
    found = {}
    for name, weight in (("ones", 1.0), ("halves", 0.5)):
        spans = [[[{"start": 0, "end": 20, "weight": weight}], None, [], None] for _ in range(frame.height)]
        kind = pl.List(pl.List(pl.Struct({"start": pl.Int64, "end": pl.Int64, "weight": pl.Float64})))
        frame.with_columns(responses_weights=pl.Series(spans, dtype=kind)).write_parquet(tmp_path / f"{name}.parquet")
        pyprefopt.train(config(inputs, tmp_path / name, sets, data=str(tmp_path / f"{name}.parquet")))
        found[name] = losses(tmp_path / name)
    assert found["ones"] != found["halves"]


def test_a_base_learns_the_best_responses(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    result = pyprefopt.train(config(inputs, tmp_path, sets, policy_init="base", base={"max_steps": 2}))
    base = result.summary["stages"]["base"]
    assert "eval_loss" not in base["eval_after"]
    assert 0 <= base["eval_after"]["eval_ranking_accuracy"] <= 1
    train, best = (
        pl.DataFrame(SegmentStore.open(tmp_path / "stages/data" / split).table) for split in ("train", "sft")
    )
    assert best["segment"].to_list() == [0, 1] * 32
    found = dict(best.filter(segment=1).select("row", "ids").iter_rows())
    for (row,), lines in train.filter(pl.col("segment") > 0).group_by("row"):
        assert found[row] == max(lines.to_dicts(), key=lambda line: line["score"])["ids"]
    folder = prepared(inputs, sets[0], tmp_path / "folder")
    build_data(config(inputs, tmp_path / "run", sets, policy_init="base", data=folder), tmp_path / "stage")
    table = SegmentStore.open(tmp_path / "stage/sft").table.select(best.columns)
    assert pl.DataFrame(table).equals(best)


def test_ranked_pairs_of_candidates_by_hand() -> None:
    from tests.reference.packing import Group, Response, pack_groups

    first = [Response([3] * length, kind="response", score=score) for length, score in ((1, 1.0), (2, 3.0), (1, 1.0))]
    second = [Response([4], kind="response", score=score) for score in (0.5, 0.25)]
    batch = pack_groups([Group([1], first), Group([1], second, row=1)]).to()
    better, worse = ranked_pairs(batch)
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == [(1, 0), (1, 2), (3, 4)]
    logps = torch.tensor([-2.0, -1.0, -3.0, -1.0, -5.0, -5.0])  # means: -2, -2, -1; -5, -5
    assert ranking_margins(batch, logps).tolist() == [0, -1, 0]


def test_ratings_of_an_aspect_are_the_scores(inputs: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    """UltraFeedback's raw set with `aspect`, and the same set with the ratings as its scores."""
    rows = data.read_candidates(str(sets[0]))
    raw, plain = [], []
    for number, (prompt, responses) in enumerate(zip(rows["prompt"], rows["responses"], strict=True)):
        ratings = [str(1 + (number + place) % 5) for place in range(len(responses))]
        texts = [chat[-1]["content"] for chat in responses.to_list()]
        completions = [
            {"response": text, "overall_score": 5.0, "annotations": {"honesty": {"Rating": rating}}}
            for text, rating in zip(texts, ratings, strict=True)
        ]
        raw.append({"instruction": prompt[-1]["content"], "completions": completions})
        plain.append({"prompt": prompt[-1]["content"], "responses": texts, "scores": [*map(float, ratings)]})
    files = {}
    for name, lines in (("raw", raw), ("plain", plain)):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings: dict[str, Any] = {"eval_data": None, "eval_ratio": 0.2}
    tables = {}
    for name, aspect in (("raw", "honesty"), ("plain", None)):
        given = config(inputs, tmp_path / "run", sets, data=str(files[name]), aspect=aspect, **settings)
        build_data(given, tmp_path / name)
        tables[name] = SegmentStore.open(tmp_path / name / "train").table.select(["row", "ids", "score"])
        folder = tmp_path / f"{name}-folder"
        limits = {"max_prompt_tokens": 64, "max_tokens": 128}
        prepare(str(files[name]), data.load_tokenizer(inputs / "tokenizer"), folder, aspect=aspect, **limits)
    assert tables["raw"].equals(tables["plain"])
    assert len(set(tables["raw"]["score"].drop_null().to_pylist())) == 5
    ready = [SegmentStore.open(tmp_path / f"{name}-folder").table["score"].to_pylist() for name in tables]
    assert ready[0] == ready[1]

    def again(aspect: str | None, name: str = "raw-folder") -> Any:
        given = config(inputs, tmp_path / "run", sets, data=str(tmp_path / name), aspect=aspect, **settings)
        return build_data(given, tmp_path / "again")

    assert again("honesty")["facts"]["rows_in"] == again(None)["facts"]["rows_in"]
    with pytest.raises(ConfigError, match=r"aspect must be honesty for the prepared data .*got 'helpfulness'"):
        again("helpfulness")
    with pytest.raises(ConfigError, match="aspect must be left out for the prepared data"):
        again("honesty", "plain-folder")
    pairs = config(inputs, tmp_path / "run", sets, data=str(inputs / "train.parquet"), aspect="honesty", **settings)
    with pytest.raises(DataError, match="aspect"):
        build_data(pairs, tmp_path / "again")
    with pytest.raises(
        ConfigError, match=r"method dpo trains on pairs; make them first, pyprefopt pairs FILE --aspect"
    ):
        config(inputs, tmp_path / "run", sets, method="dpo", aspect="honesty", policy_init="model")


def test_a_prepared_set_that_cannot_be_ranked_is_left_out_where_that_is_asked(
    inputs: Path, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = pl.read_parquet(sets[0])
    scores = [None if row == 3 else own for row, own in enumerate(rows["scores"].to_list())]
    rows.with_columns(scores=pl.Series(scores)).write_parquet(tmp_path / "sets.parquet")
    folder = prepared(inputs, tmp_path / "sets.parquet", tmp_path / "folder")
    with pytest.raises(DataError, match="row 3"):
        build_data(config(inputs, tmp_path / "run", sets, data=folder), tmp_path / "raise")
    facts = build_data(config(inputs, tmp_path / "run", sets, data=folder, on_error="skip"), tmp_path / "skip")["facts"]
    assert (facts["train"]["rows"], facts["rows_rejected"]) == (31, 1)
