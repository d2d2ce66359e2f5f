"""`pyprefopt rank`: scores of a reward model beside the rows of a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import pyprefopt
from pyprefopt.cli import main
from pyprefopt.pipeline.run import RunResult
from pyprefopt.stages.scoring import scores
from tests.modeling.models import ARCHITECTURES, shake
from tests.pipeline.other import write_other
from tests.pipeline.runs import small
from tests.training.ranks import run_ranks


@pytest.fixture(scope="module")
def reward(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    settings = {"base": {"max_steps": 1}, "oracle": {}, "learning_rate": 3e-3, "num_train_epochs": 2.0}
    return pyprefopt.train(small(inputs, tmp_path_factory.mktemp("reward"), method="reward", **settings))


def rank(data: Path, model: Path, out: Path, *more: str) -> int:
    words = ["--output_dir", str(out.parent / "stages"), "--threads", "1", "--log_level", "warning"]
    return main(["rank", str(data), "--reward_model", str(model), "--out", str(out), *words, *more])


def classifier(directory: Path, num_labels: int = 1) -> Path:
    """A classifier of transformers', with a tokenizer and a template of its own."""
    write_other(directory, "byte_bpe")
    settings = ARCHITECTURES["gpt_neox"] | {"vocab_size": 512, "max_position_embeddings": 512}
    config = AutoConfig.for_model(**settings, num_labels=num_labels, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config)
    shake(model)
    model.save_pretrained(directory)
    return directory


def plain_score(model: Path, prompt: str, response: str) -> float:
    """What transformers makes of one text."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(model).eval()(input_ids=ids).logits.item()


def test_the_accuracy_is_that_of_the_run(inputs: Path, reward: RunResult, tmp_path: Path, capsys) -> None:
    assert rank(inputs / "test.parquet", reward.policy, tmp_path / "o.parquet") == 0
    before, after = pl.read_parquet(inputs / "test.parquet"), pl.read_parquet(tmp_path / "o.parquet")
    assert_frame_equal(after.drop("score_chosen", "score_rejected"), before)
    right = (after["score_chosen"] > after["score_rejected"]) + 0.5 * (after["score_chosen"] == after["score_rejected"])
    evaluation = reward.summary["stages"]["policy"]["eval_after"]
    assert right.mean() == pytest.approx(evaluation["eval_ranking_accuracy"], abs=1e-12)
    printed = capsys.readouterr().out
    assert f"32 of 32 rows scored; chosen scored higher in {evaluation['eval_ranking_accuracy']:.2%}" in printed
    margins = (after["score_chosen"].cast(pl.Float64) - after["score_rejected"]).mean()
    assert margins == pytest.approx(evaluation["eval_rewards/margins"], abs=1e-6)


def test_a_model_of_another_tokenizer_reads_its_own_template(inputs: Path, tmp_path: Path) -> None:
    model, pairs = classifier(tmp_path / "model"), tmp_path / "test.jsonl"
    pl.read_parquet(inputs / "test.parquet", columns=["prompt", "chosen", "rejected"]).head(6).write_ndjson(pairs)
    for name, tokens in (("one", "200"), ("all", "16384")):  # a row a micro-batch, or all in one
        more = ["--output_dir", str(tmp_path / name), "--max_tokens_per_batch", tokens]
        assert rank(pairs, model, tmp_path / f"{name}.jsonl", *more) == 0
    one, every = (pl.read_ndjson(tmp_path / f"{name}.jsonl") for name in ("one", "all"))
    for row, other in zip(one.to_dicts(), every.to_dicts(), strict=True):
        for side in ("chosen", "rejected"):
            theirs = plain_score(model, row["prompt"], row[side])
            assert row[f"score_{side}"] == pytest.approx(theirs, abs=1e-5)
            assert other[f"score_{side}"] == pytest.approx(theirs, abs=1e-5)


def test_candidates_get_a_score_each_and_bad_rows_none(reward: RunResult, tmp_path: Path, capsys) -> None:
    rows = [
        {"prompt": "cat", "responses": ["says meow", "says moo", "says meow"], "id": 7},
        {"prompt": "cow", "responses": [], "id": 8},
        {"prompt": "cow", "responses": ["says moo"], "id": 9},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rank(tmp_path / "in.jsonl", reward.policy, tmp_path / "o.jsonl") == 2
    assert "1 of 3 rows cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()
    assert rank(tmp_path / "in.jsonl", reward.policy, tmp_path / "o.jsonl", "--on_error", "skip") == 0
    assert "scores; 2 of 3 rows scored" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in ("prompt", "responses", "id")} for row in written] == rows
    assert [row["scores"] and len(row["scores"]) for row in written] == [3, None, 1]
    first = written[0]["scores"]
    assert first[0] == pytest.approx(first[2], abs=1e-6)  # the same text
    assert first[0] != pytest.approx(first[1], abs=1e-6)
    assert first[1] == pytest.approx(plain_score(reward.policy, "cat", "says moo"), abs=1e-5)


def test_a_row_of_one_response_gets_a_score_and_pairs_are_picked_by_it(
    reward: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"cat": ["says meow", "says moo"], "cow": ["says woof", "says moo"]}
    sets = [{"prompt": prompt, "responses": answers} for prompt, answers in said.items()]
    single = [{"prompt": p, "response": text, "sample": n} for p, own in said.items() for n, text in enumerate(own)]
    alone = [{"messages": [{"role": r, "content": row[n]} for r, n in (("user", "prompt"), ("assistant", "response"))]}
             for row in single]  # fmt: skip
    found = {}
    for name, rows in {"sets": sets, "single": single, "alone": alone}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert rank(tmp_path / f"{name}.jsonl", reward.policy, tmp_path / f"{name}-o.jsonl") == 0
        found[name] = [json.loads(line) for line in (tmp_path / f"{name}-o.jsonl").read_text().splitlines()]
    assert "score; 4 of 4 rows scored" in capsys.readouterr().out
    scores = [row["score"] for row in found["single"]]
    assert scores == pytest.approx([score for row in found["sets"] for score in row["scores"]], abs=1e-6)
    assert [row["score"] for row in found["alone"]] == pytest.approx(scores, abs=1e-6)
    assert [{name: row[name] for name in ("prompt", "response", "sample")} for row in found["single"]] == single
    assert main(["pairs", str(tmp_path / "single-o.jsonl"), "--out", str(tmp_path / "pairs.jsonl")]) == 0
    for line, (best, other) in zip(
        (tmp_path / "pairs.jsonl").read_text().splitlines(), (scores[:2], scores[2:]), strict=True
    ):
        pair = json.loads(line)
        assert [pair["score_chosen"], pair["score_rejected"]] == pytest.approx([max(best, other), min(best, other)])


def test_two_ranks_score_as_one_and_the_stages_are_used_again(
    inputs: Path, reward: RunResult, tmp_path: Path, monkeypatch, caplog
) -> None:
    words = (inputs / "test.parquet", reward.policy)
    few = ["--max_tokens_per_batch", "300"]
    assert rank(*words, tmp_path / "one.parquet", *few) == 0
    with monkeypatch.context() as patch:
        patch.setattr(scores, "score_part", None)  # what is there is not made again
        assert rank(*words, tmp_path / "again.parquet", *few) == 0
    more = ["--output_dir", str(tmp_path / "two"), *few]
    assert run_ranks(2, rank, *words, tmp_path / "two.parquet", *more) == [0, 0]
    one, two, again = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "two", "again"))
    assert_frame_equal(one, again, check_exact=True)
    assert_frame_equal(one, two, check_exact=True)


def test_refusals(inputs: Path, reward: RunResult, sepo: RunResult, tmp_path: Path, capsys) -> None:
    def refused(*words: object) -> str:
        assert rank(*words) == 2  # type: ignore[arg-type]
        return capsys.readouterr().err

    pairs, out = inputs / "test.parquet", tmp_path / "o.jsonl"
    assert "must have the weights of its head (score.weight)" in refused(pairs, sepo.policy, out)
    several = classifier(tmp_path / "several", num_labels=2)
    assert "a reward model must have one output, got 2 (num_labels)" in refused(pairs, several, out)
    scored = tmp_path / "scored.parquet"
    pl.read_parquet(pairs).with_columns(score_chosen=pl.lit(1.0)).write_parquet(scored)
    assert "must not have the column 'score_chosen', which is to be written; give --prefix NAME_" in refused(
        scored, reward.policy, out
    )
    assert rank(scored, reward.policy, out, "--prefix", "rm_") == 0
    assert {"score_chosen", "rm_score_chosen", "rm_score_rejected"} <= {*json.loads(out.read_text().splitlines()[0])}
    assert "out must be a new file" in refused(pairs, reward.policy, out)
    assert "rank takes one file of pairs, candidates or" in refused(inputs, reward.policy, tmp_path / "p.jsonl")
    assert "unknown setting 'reward_mode'; did you mean 'reward_model'?" in refused(
        pairs, reward.policy, out, "--reward_mode", "x"
    )


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rank", "--help"])
    assert stop.value.code == 0
    assert re.search(r"pyprefopt rank IN --reward_model RM --out OUT", capsys.readouterr().out)


@pytest.mark.parametrize("row", [{"foo": 1, "bar": "x"}, {"prompt": "hello"}])
def test_rows_of_no_schema_are_said(row: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--reward_model", "nowhere", "--out", str(tmp_path / "o.jsonl"), "--output_dir", str(tmp_path / "r")]
    assert main(["rank", str(tmp_path / "a.jsonl"), *words]) == 2
    assert re.search(r"a\.jsonl: no known schema; its fields are", capsys.readouterr().err)
    assert main(["rank", str(tmp_path / "none.jsonl"), *words]) == 2
    assert "there is none called" in capsys.readouterr().err
