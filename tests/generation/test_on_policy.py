"""Pairs of a policy's own samples, and rounds of pairs and trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pyprefopt
from pyprefopt import data
from pyprefopt.cli.main import main
from pyprefopt.data import embedded
from pyprefopt.data.embedded import CHOICES, score_response
from pyprefopt.data.reading.frames import CHAT
from pyprefopt.errors import ArtifactError, ConfigError, DataError
from pyprefopt.modeling import load_model
from pyprefopt.pipeline.generation import judging, rounds
from pyprefopt.stages.generation import pairs as stage
from tests.generation.conftest import PROMPTS
from tests.pipeline.runs import digest, small, train
from tests.training.ranks import run_ranks

QUICK = ["--threads", "1", "--log_level", "warning", "--max_tokens_per_batch", "512"]


def short(words: tuple[str, ...]) -> list[str]:
    """The words, with few tokens a sample where they do not say how many."""
    return [*words, *([] if "--max_new_tokens" in words else ["--max_new_tokens", "8"])]


def pairs(prompts: Path, model: Path, folder: Path, *words: str, out: str = "pairs.parquet") -> int:
    given = ["--model", str(model), "--out", str(folder / out), "--output_dir", str(folder / "stages")]
    return main(["pairs", str(prompts), *given, *QUICK, *short(words)])


def facts_of(folder: Path) -> dict[str, Any]:
    manifest = folder / "stages" / "on_policy_pairs" / "manifest.json"
    found: dict[str, Any] = json.loads(manifest.read_text())["facts"]
    return found


def generate(prompts: Path, model: Path, folder: Path, *words: str) -> pl.DataFrame:
    given = ["--policy", str(model), "--out", str(folder / "s.parquet"), "--output_dir", str(folder / "g")]
    assert main(["generate", str(prompts), *given, *QUICK, *short(words)]) == 0
    return pl.read_parquet(folder / "s.parquet")


def test_the_rule_of_the_embedded_set() -> None:
    for row in embedded.pairs("1-test", 16).iter_rows(named=True):
        assert score_response(row["prompt"], row["chosen"]) == 1
        assert score_response(row["prompt"], row["rejected"]) == -1
    for row in embedded.candidates("1", 16).iter_rows(named=True):
        for text, score in zip(row["responses"], row["scores"], strict=True):
            assert score_response(row["prompt"], text) == pytest.approx(2 * score - 1)
    assert score_response("a cat b", "says meow woof meow moo purr") == 1 / CHOICES
    with pytest.raises(DataError, match="prompts with one of cat, dog"):
        score_response("no animal", "meow")


def test_pairs_of_samples_by_the_rule(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is generated, ranked and picked, against a plain way from the file of generate."""
    drawn = ["--samples", "4", "--temperature", "0.8", "--top_p", "0.9", "--seed", "3", "--max_new_tokens", "150"]
    assert pairs(prompts, models[0], tmp_path, *drawn, "--reward_model", "embedded:rule") == 0
    printed = capsys.readouterr().out
    samples = generate(prompts, models[0], tmp_path, *drawn)
    made = pl.read_parquet(tmp_path / "pairs.parquet")
    wanted, ties, lengths, rewards = {}, 0, [], []
    for (row,), own in samples.group_by("row", maintain_order=True):
        scores = [np.float32(score_response(PROMPTS[row], text)) for text in own["response"]]
        rewards += scores
        best, worst = int(np.argmax(scores)), int(np.argmin(scores))
        if scores[best] == scores[worst]:
            ties += 1
            continue
        wanted[row] = (best, worst, float(scores[best]), float(scores[worst]))
        tokens = own["ids"].list.len().to_list()
        lengths.append(tokens[best] - tokens[worst])
        line = made.filter(candidates_row=row).row(0, named=True)
        assert [line[side][-1]["content"] for side in ("chosen", "rejected")] == [
            own["response"][best], own["response"][worst],
        ]  # fmt: skip
        ends = own["finished"].to_list()
        assert (line["chosen_complete"], line["rejected_complete"]) == (ends[best], ends[worst])
        assert line["prompt"][0]["content"] == PROMPTS[row]
    columns = ("candidates_row", "chosen_index", "rejected_index", "score_chosen", "score_rejected")
    assert {row: tuple(rest) for row, *rest in made.select(columns).rows()} == wanted
    assert wanted
    facts = json.loads(next((tmp_path / "stages" / "stages").glob("on_policy_pairs/manifest.json")).read_text())[
        "facts"
    ]
    assert facts["reward"] == pytest.approx(np.mean(rewards))
    assert facts["length_difference"] == pytest.approx(np.mean(lengths))
    tokens = samples["ids"].list.len().to_numpy()
    assert facts["reward_length_correlation"] == pytest.approx(np.corrcoef(rewards, tokens)[0, 1])
    assert facts["finished"] == samples["finished"].mean()
    assert f"pairs.parquet: {len(wanted)} pair" in printed
    assert facts["left_out"] == ({"pairs of equal scores": ties} if ties else {})
    assert data.read_preferences(tmp_path / "pairs.parquet").height == len(wanted)


def test_another_pick_generates_nothing_anew(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = ("--samples", "4", "--reward_model", "embedded:rule")
    assert pairs(prompts, models[0], tmp_path, *rule) == 0
    monkeypatch.setattr("pyprefopt.generation.generate.generate_batch", None)  # nothing may be generated now
    assert pairs(prompts, models[0], tmp_path, *rule, "--pick", "all", out="all.jsonl") == 0
    best, everything = pl.read_parquet(tmp_path / "pairs.parquet"), data.read_preferences(tmp_path / "all.jsonl")
    assert everything.height > best.height
    assert {"score_chosen", "chosen_complete"} <= {*everything.columns}


def test_a_reward_model_ranks_the_samples(
    models: tuple[Path, Path], inputs: Path, prompts: Path, tmp_path: Path
) -> None:
    """Its scores are those of `pyprefopt rank` on the file of generate."""
    run = pyprefopt.train(
        small(inputs, tmp_path / "run", method="reward", max_steps=2, policy_init=None, base={}, oracle={})
    )
    rm = str(run.policy)
    assert pairs(prompts, models[0], tmp_path, "--samples", "3", "--reward_model", rm, "--pick", "all") == 0
    generate(prompts, models[0], tmp_path, "--samples", "3", "--temperature", "0.8", "--top_p", "0.95")
    words = ["--reward_model", rm, "--out", str(tmp_path / "r.parquet"), "--output_dir", str(tmp_path / "rank")]
    assert main(["rank", str(tmp_path / "s.parquet"), *words, "--threads", "1", "--log_level", "warning"]) == 0
    ranked = pl.read_parquet(tmp_path / "r.parquet")
    made = pl.read_parquet(tmp_path / "pairs.parquet")
    for line in made.iter_rows(named=True):
        own = ranked.filter(row=line["candidates_row"])
        assert line["score_chosen"] == pytest.approx(own["score"][line["chosen_index"]], abs=1e-6)
        assert line["score_rejected"] == pytest.approx(own["score"][line["rejected_index"]], abs=1e-6)
    assert made.height > 4


def test_scores_from_elsewhere(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--samples", "3", "--temperature", "0.8", "--top_p", "0.95"]
    samples = generate(prompts, models[0], tmp_path, *words)
    scores = samples.select("row", "sample").with_columns(score=pl.int_range(pl.len()).cast(pl.Float64))
    for name, write in (("a.csv", scores[::-1].write_csv), ("a.jsonl", scores.write_ndjson)):
        write(tmp_path / name)
        given = ["--scores", str(tmp_path / name)]
        assert pairs(prompts, models[0], tmp_path, "--samples", "3", *given, out=f"{name}.parquet") == 0
        out = str(tmp_path / f"{name}-file.parquet")
        assert main(["pairs", str(tmp_path / "s.parquet"), *given, "--out", out]) == 0
        texts = []
        for file in (tmp_path / f"{name}.parquet", Path(out)):
            made = pl.read_parquet(file)
            assert set(made["chosen_index"]) == {2}
            assert set(made["rejected_index"]) == {0}
            texts.append([chat[-1]["content"] for chat in made["chosen"].to_list()])
        assert texts[0] == texts[1]
    capsys.readouterr()
    given = ["--scores", str(tmp_path / "a.csv"), "--out", str(tmp_path / "a.csv"), "--overwrite"]
    assert main(["pairs", str(tmp_path / "s.parquet"), *given]) == 2
    assert pairs(prompts, models[0], tmp_path, "--samples", "3", *given[:2], "--overwrite", out="a.csv") == 2
    assert capsys.readouterr().err.count("another file than the input") == 2
    broken = {
        "lost.csv": (scores.head(5), "row 1, sample 2 has no score"),
        "twice.csv": (pl.concat([scores, scores.head(1)]), "row 0, sample 0 is there twice"),
        "half.csv": (scores.with_columns(row=pl.col("row") + 0.5), "row must be a whole number, got 0.5"),
        "more.csv": (
            pl.concat([scores, scores.tail(1).with_columns(sample=pl.lit(9, pl.UInt32))]),
            "is no sample here",
        ),
        "names.csv": (scores.rename({"score": "points"}), "there is no column score"),
        "words.csv": (scores.with_columns(score=pl.lit("good")), "row, sample and score must be numbers"),
    }
    for name, (frame, message) in broken.items():
        frame.write_csv(tmp_path / name)
        given = ["--samples", "3", "--scores", str(tmp_path / name)]
        assert pairs(prompts, models[0], tmp_path, *given, out="x.parquet") == 2
        said = capsys.readouterr().err
        assert message in said
        assert name in said
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "M"], "nothing ranks the samples; give either reward_model"),
        (["--model", "M", "--reward_model", "embedded:rule", "--scores", "s.csv"], "two things rank the samples"),
        (["--model", "M", "--reward_model", "embedded:rule", "--samples", "1"], "on_policy.samples must be > 1"),
        (["--model", "M", "--reward_model", "nowhere/at all"], "reward_model must be a local path"),
        (["--model", "M", "--aspect", "honesty"], "aspect is of given candidates"),
        (["--samples", "3"], "samples applies to what a model generates; add --model"),
        (["--reward_model", "R"], "or score them first: pyprefopt rank"),
        (["--scores", "s.csv"], "scores go with one .parquet file of pyprefopt generate"),
    ],
)
def test_what_does_not_fit_is_said(
    words: list[str], message: str, models: tuple[Path, Path], prompts: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [str(models[0]) if word == "M" else word for word in words]
    quick = ["--output_dir", str(tmp_path / "stages"), *QUICK] if "M" in words else []
    assert main(["pairs", str(prompts), "--out", str(tmp_path / "out.jsonl"), *given, *quick]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_scores_of_json_are_read_whole(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    """Whole numbers before a broken one, and NaN, which Python writes."""
    words = ["--samples", "3", "--temperature", "0.8", "--top_p", "0.95"]
    keys = generate(prompts, models[0], tmp_path, *words).select("row", "sample")
    values = [3, *range(10, 19), 4.5, float("nan")]
    rows = [{**row, "score": value} for row, value in zip(keys.to_dicts(), values, strict=True)]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys.with_columns(score=pl.Series([str(value) for value in values])).write_csv(tmp_path / "s.csv")
    for name in ("s.json", "s.jsonl", "s.csv"):
        found = judging.read_scores_file(tmp_path / name, keys)
        assert found == pytest.approx(values, nan_ok=True), name
    (tmp_path / "bad.jsonl").write_text("[1, 2]\n")
    with pytest.raises(DataError, match=r"bad\.jsonl: cannot be read as jsonl: a line must be an object"):
        judging.read_scores_file(tmp_path / "bad.jsonl", keys)


def test_nothing_is_generated_before_the_judge_is_looked_at(
    models: tuple[Path, Path], inputs: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for judge, message in (
        (str(models[0]), "a reward model must have the weights of its head"),
        ("rm/typo", "reward_model"),
    ):
        assert pairs(prompts, models[0], tmp_path, "--reward_model", judge) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "stages").exists()
    settings: dict[str, Any] = {**ROUNDS, "base": {"max_steps": 2}, "oracle": {}}
    for more in ({"eval_data": "missing.jsonl"}, {"lora": {"r": 4, "target_modules": ["q_prj"]}}):
        with pytest.raises((ConfigError, DataError), match=r"missing\.jsonl|q_prj"):
            pyprefopt.train(small(inputs, tmp_path / "run", method="dpo", **{**settings, **more}))
    assert not (tmp_path / "run" / "samples-0").exists()
    assert not (tmp_path / "run" / "round-0").exists()


def test_a_reward_model_with_another_template_ranks_anew(
    models: tuple[Path, Path], inputs: Path, prompts: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "policy_init": None, "base": {}, "oracle": {}}
    rm = pyprefopt.train(small(inputs, tmp_path / "run", method="reward", **settings)).policy
    words = ("--samples", "3", "--reward_model", str(rm), "--pick", "all")
    assert pairs(prompts, models[0], tmp_path, *words) == 0
    template = rm / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|user|>", "<|system|>").replace("message.role", "'system'"))
    assert pairs(prompts, models[0], tmp_path, *words, out="again.parquet") == 0
    one, other = (
        pl.read_parquet(tmp_path / name)["score_chosen"].to_list() for name in ("pairs.parquet", "again.parquet")
    )
    assert one != other


def test_what_a_prompt_was_rendered_with_stays_with_its_samples(models: tuple[Path, Path], tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "tools": tools}) + "\n" for text in PROMPTS))
    samples = generate(path, models[0], tmp_path, "--samples", "2")
    assert samples["tools"].null_count() == 0
    assert pairs(path, models[0], tmp_path, "--samples", "3", "--reward_model", "embedded:rule", "--pick", "all") == 0
    assert data.read_preferences(tmp_path / "pairs.parquet")["tools"].null_count() == 0


def test_a_damaged_stage_is_made_again(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = generate(prompts, models[0], tmp_path)
    file = next((tmp_path / "g").glob("stages/samples/samples/samples.parquet"))
    for damaged in (samples.with_columns(response=pl.lit("ALTERED")), None):
        file.write_bytes(b"PAR1") if damaged is None else damaged.write_parquet(file)
        assert generate(prompts, models[0], tmp_path, "--overwrite").equals(samples)


def test_no_prompt_is_left(models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.jsonl").write_text('{"prompt": ""}\n')
    given = ["--policy", str(models[0]), "--out", str(tmp_path / "o.parquet"), "--output_dir", str(tmp_path / "g")]
    assert main(["generate", str(tmp_path / "e.jsonl"), *given, *QUICK, "--on_error", "skip"]) == 2
    assert "e.jsonl: no prompt is left" in capsys.readouterr().err


def test_no_pair_is_left(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = generate(prompts, models[0], tmp_path, "--samples", "2", "--temperature", "0.8", "--top_p", "0.95")
    samples.select("row", "sample", score=pl.lit(1.0)).write_csv(tmp_path / "same.csv")
    assert pairs(prompts, models[0], tmp_path, "--samples", "2", "--scores", str(tmp_path / "same.csv")) == 2
    assert "no pair is left to write (pairs of equal scores: 4)" in capsys.readouterr().err


ROUNDS: dict[str, Any] = {
    "on_policy_rounds": 2, "max_steps": 3, "threads": 1,
    "on_policy": {"reward_model": "embedded:rule", "samples": 3, "max_new_tokens": 8},
}  # fmt: skip


@pytest.mark.parametrize("method", ["dpo", pytest.param("sepo", marks=pytest.mark.slow)])
def test_rounds_go_on_where_they_were_killed(
    method: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**ROUNDS, "base": {"max_steps": 2}, "oracle": {"max_steps": 2} if method == "sepo" else {}}
    whole = pyprefopt.train(small(inputs, tmp_path / "whole", method=method, **settings))
    printed = capsys.readouterr().out
    assert len(whole.summary["rounds"]) == 3
    assert [facts.get("pairs") is not None for facts in whole.summary["rounds"]] == [True, True, False]
    table = pl.read_csv(tmp_path / "whole" / "rounds.csv")
    assert table["round"].to_list() == [0, 1, 2]
    assert table["reward"].to_list() == pytest.approx([facts["reward"] for facts in whole.summary["rounds"]])
    assert "whole/policy: the policy of the last round" in printed
    assert whole.policy.resolve() == (tmp_path / "whole" / "round-2" / "policy").resolve()
    load_model(whole.policy)
    for number in (1, 2):  # each round starts from the policy before, which is its reference
        record = (tmp_path / "whole" / f"round-{number}" / "config.yaml").read_text()
        assert ("round-0" if number == 1 else "round-1/policy") in record
        read = json.loads(
            (tmp_path / "whole" / f"samples-{number - 1}" / "stages" / "on_policy_pairs" / "manifest.json").read_text()
        )
        assert read["facts"]["pairs"] > 0
    calls = [0]
    original = rounds.on_policy_pairs

    def dying(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return original(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "on_policy_pairs", dying)
        with pytest.raises(KeyboardInterrupt):
            pyprefopt.train(small(inputs, tmp_path / "killed", method=method, **settings))
    again = pyprefopt.train(small(inputs, tmp_path / "killed", method=method, **settings))
    other = {**settings, "on_policy": {**settings["on_policy"], "temperature": 1.2}}
    before = (tmp_path / "killed" / "config.yaml").read_bytes()
    with pytest.raises(
        ArtifactError, match=r"holds rounds of other settings \(on_policy.temperature was 0.8, is 1.2\)"
    ):
        pyprefopt.train(small(inputs, tmp_path / "killed", method=method, **other))
    assert (tmp_path / "killed" / "config.yaml").read_bytes() == before
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert [{**facts, "seconds": 0, "peak_memory_bytes": 0} for facts in again.summary["rounds"]] == [
        {**facts, "seconds": 0, "peak_memory_bytes": 0} for facts in whole.summary["rounds"]
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_policy": {}}, "on_policy.reward_model must be given"),
        ({"check": True}, "check does not go with on_policy_rounds"),
        ({"overwrite": True}, "overwrite does not go with on_policy_rounds"),
        ({"columns": ["prompt=question"]}, "columns does not go with on_policy_rounds"),
        ({"format": "hh"}, "format does not go with on_policy_rounds"),
        ({"policy_init": "model", "base": {}}, "model must have weights to generate from"),
        ({"on_policy_rounds": 0}, "on_policy.* is about pairs that the policy generates"),
        ({"method": "reward", "policy_init": None, "base": {}}, "method reward trains no policy on pairs"),
        ({"on_policy": {"pick": "margin"}}, "on_policy.margin must be given for pick margin"),
    ],
)
def test_rounds_refuse(settings: dict[str, Any], message: str, inputs: Path, tmp_path: Path) -> None:
    given = {"method": "dpo", **ROUNDS, "oracle": {}, **settings}
    with pytest.raises(ConfigError) as found:
        pyprefopt.train(small(inputs, tmp_path / "run", **given))
    assert message in str(found.value)
    assert not (tmp_path / "run").exists()


def test_a_sample_without_text_is_left_out() -> None:
    """A model that ends at once: its sample is the best by its score, and is in no pair."""
    rows = [{"row": 0, "response": text, "response_complete": True} for text in ("", "a", "b")]
    said = [{"role": "assistant", "content": row["response"], "extra": None} for row in rows]
    asked = [{"role": "user", "content": "q", "extra": None}]
    kinds = {"row": pl.UInt64, "response": pl.String, "response_complete": pl.Boolean, "prompt": CHAT, "messages": CHAT}
    samples = pl.DataFrame(
        [{**row, "prompt": asked, "messages": [*asked, own]} for row, own in zip(rows, said, strict=True)], kinds
    )
    picked = stage.pick_samples(samples, [9.0, 1.0, float("nan")], pick="all")
    assert picked.pairs.is_empty()
    assert {name: count for name, count in picked.left_out.items() if count} == {
        "no_text": 1, "no_score": 1, "one_response": 1,
    }  # fmt: skip
    assert stage.pick_samples(samples, [9.0, 1.0, 2.0], pick="best_worst").pairs["chosen_index"].to_list() == [2]


def test_a_sample_without_a_score_counts_nowhere() -> None:
    table = pl.DataFrame({"row": [0, 0, 1], "finished": [True, False, True], "ids": [[1], [1, 2, 3], [1, 2]]})
    told = stage.describe_samples(table, [1.0, float("nan"), 3.0])
    assert (told["reward"], told["reward_best"], told["reward_worst"]) == (2, 2, 2)
    assert told["tokens"] == 2
    assert told["reward_length_correlation"] == pytest.approx(1)


def _commands(*calls: list[str]) -> None:
    for words in calls:
        if main(words) != 0:
            raise SystemExit(2)


def test_two_ranks_work_as_one(models: tuple[Path, Path], inputs: Path, prompts: Path, tmp_path: Path) -> None:
    """Pairs, the study of decoding, and a round: the ranks share the samples, rank 0 judges and writes."""
    policy, ref = map(str, models)
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        rule = ["--reward_model", "embedded:rule", *short(()), *QUICK]
        made = ["--samples", "20", "--out", str(folder / "p.parquet"), "--output_dir", str(folder / "p")]
        study = ["--ref", ref, "--output_dir", str(folder / "d"), "--a", "0", "1", "--t", "2", "--b", "1"]
        calls = [
            ["pairs", str(prompts), "--model", policy, *made, *rule],
            ["study", "decoding", str(prompts), "--policy", policy, *study, "--samples", "20", *rule],
        ]
        assert run_ranks(world, _commands, *calls) == [0] * world
        settings = {**ROUNDS, "on_policy_rounds": 1, "base": {"max_steps": 2}, "oracle": {}, "method": "dpo"}
        assert run_ranks(world, train, str(inputs), folder / "run", **settings) == [0] * world
        rounds_table = pl.read_csv(folder / "run" / "rounds.csv")
        found.append((pl.read_parquet(folder / "p.parquet"), pl.read_csv(folder / "d" / "decoding.csv"), rounds_table))
    one, two = found
    assert one[0].equals(two[0])
    for left, right in ((one[1], two[1]), (one[2].head(1), two[2].head(1))):
        for name in left.columns:
            if left[name].dtype == pl.Float64:
                assert left[name].to_list() == pytest.approx(right[name].to_list(), abs=1e-5), name
    assert one[2].height == two[2].height == 2
