"""`pyprefopt evaluate` on a small run: its numbers are those of the run, and what it writes can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pyprefopt
from pyprefopt import cli
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ArtifactError, ConfigError, DataError
from pyprefopt.evaluation.accuracy import Cuts
from pyprefopt.evaluation.kl import kl_by_position, kl_of_responses
from pyprefopt.pipeline.evaluations.accuracy import evaluate_accuracy
from pyprefopt.pipeline.evaluations.kl import evaluate_kl
from tests.evaluation.test_accuracy import segments
from tests.pipeline.runs import small, write_inputs

LIMITS: dict[str, Any] = {"max_prompt_tokens": 64, "max_tokens": 128, "max_tokens_per_batch": 512, "threads": 1}


class Run(NamedTuple):
    """A DPO run and what it was made of."""

    folder: Path
    policy: str
    ref: str
    test: str
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    paths = write_inputs(folder)
    config = small(folder, folder / "run", method="dpo", policy_init=None, base={}, oracle={}, max_steps=4)
    made = pyprefopt.train(config)
    return Run(folder, str(made.policy), str(folder / "config.json"), str(paths.test), made.summary)


def evaluate(run: Run, out: Path, **settings: Any) -> Any:
    options = {"ref": run.ref, "plots": False, "tokenizer": str(run.folder / "tokenizer"), **LIMITS, **settings}
    return evaluate_accuracy(run.test, run.policy, out=out, **options)


def test_whole_responses_are_ranked_as_in_the_run(run: Run, tmp_path: Path) -> None:
    found = evaluate(run, tmp_path)
    whole = found.table.filter(kind="ratio", point=1.0)
    policy = run.summary["stages"]["policy"]["eval_after"]
    assert whole["ties"].item() == 0
    assert whole["accuracy"].item() == policy["eval_rewards/accuracies"]
    assert 0.1 * whole["mean_margin"].item() == pytest.approx(policy["eval_rewards/margins"], abs=1e-4)  # beta 0.1
    record = json.loads((tmp_path / "accuracy.json").read_text())
    assert record["data"] == run.test
    assert record["pairs"] == 32
    assert record["depth"] == found.depth
    assert pl.read_csv(tmp_path / "accuracy.csv").equals(found.table)
    again = evaluate(run, tmp_path, cuts=Cuts((0.5,), (3,)))
    assert again.table.filter(kind="ratio", point=1.0).equals(whole)
    assert {path.name.split("-")[0] for path in (tmp_path / "stages").iterdir()} == {"data", "logps"}


def test_prefixes_score_as_responses_that_are_cut(run: Run, tmp_path: Path) -> None:
    """The score of tokens that are cut for real, of the same models."""
    half = evaluate(run, tmp_path / "whole", cuts=Cuts((0.5,), ())).table.filter(kind="ratio", point=0.5)
    tokenizer = pyprefopt.data.load_tokenizer(run.folder / "tokenizer")
    cut = tmp_path / "cut"
    pyprefopt.data.prepare(run.test, tokenizer, cut, truncation={"ratio": 0.5}, max_tokens=128, max_prompt_tokens=64)
    found = evaluate(run._replace(test=str(cut)), tmp_path / "out", tokenizer=None).table
    whole = found.filter(kind="ratio", point=1.0)
    assert whole["accuracy"].item() == half["accuracy"].item()
    assert whole["mean_margin"].item() == pytest.approx(half["mean_margin"].item(), abs=1e-5 * 21)  # 21 tokens


def test_a_model_against_itself_and_alone(run: Run, tmp_path: Path) -> None:
    same = evaluate(run, tmp_path / "same", ref=run.policy).table
    assert set(same["accuracy"]) == {0.5}
    alone = evaluate(run, tmp_path / "alone", ref=None, signal="logprob", normalize="mean").table
    accuracy = alone.filter(kind="ratio", point=1.0)["accuracy"].item()
    assert accuracy == run.summary["ranking_accuracy"]["after"]


def test_a_folder_that_was_prepared_with_truncation_is_told(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pyprefopt import data

    tokenizer = data.load_tokenizer(run.folder / "tokenizer")
    lengths = {name: value for name, value in LIMITS.items() if name in ("max_prompt_tokens", "max_tokens")}
    data.prepare(run.test, tokenizer, tmp_path / "half", truncation={"ratio": 0.5}, **lengths)
    evaluate(run._replace(test=str(tmp_path / "half")), tmp_path / "out", cuts=Cuts((), (4,)), tokenizer=None)
    assert "was prepared with truncation (ratio 0.5): whole responses are here what that has left" in caplog.text


def test_by_a_column(run: Run, tmp_path: Path) -> None:
    pairs = pl.read_parquet(run.test).with_columns(source=pl.Series(["a", "b"] * 16))
    pairs.write_parquet(tmp_path / "pairs.parquet")
    test = run._replace(test=str(tmp_path / "pairs.parquet"))
    found = evaluate(test, tmp_path / "out", by="source", cuts=Cuts((), (4,)))
    whole = found.by.filter(kind="ratio")
    assert whole["source"].to_list() == ["a", "b"]
    assert whole["pairs"].to_list() == [16, 16]
    assert whole["accuracy"].mean() == found.table.filter(kind="ratio")["accuracy"].item()
    assert (tmp_path / "out" / "accuracy_by_source.csv").is_file()
    renamed = tmp_path / "renamed.parquet"
    pairs.rename({"source": "kind"}).write_parquet(renamed)
    again = evaluate(run._replace(test=str(renamed)), tmp_path / "out", by="kind", cuts=Cuts((), (4,)), plots=True)
    assert again.by.rename({"by_kind": "source"}).equals(found.by)
    for by, words in (
        ("sourc", r"there is no column 'sourc' for by; did you mean 'source'\?; take one of .*source"),
        ("chosen", r"by must be a further column of .*, got 'chosen', which the pairs are read from"),
    ):
        with pytest.raises(DataError, match=words):
            evaluate(test, tmp_path / "none", by=by)
        assert not (tmp_path / "none" / "stages").exists()  # nothing was scored


def test_kl_is_that_of_transformers(run: Run, tmp_path: Path) -> None:
    options = {"tokenizer": str(run.folder / "tokenizer"), **LIMITS}
    found = evaluate_kl(run.test, run.policy, run.ref, out=tmp_path, plots=False, **options)
    tokens = pl.read_parquet(tmp_path / "tokens.parquet")
    policy = AutoModelForCausalLM.from_pretrained(run.policy)
    base = pyprefopt.modeling.load_model(run.ref)
    tokenizer = AutoTokenizer.from_pretrained(run.policy)
    pair = pl.read_parquet(run.test).row(3, named=True)
    chat = [{"role": "user", "content": pair["prompt"]}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    line = tokens.filter(row=3, kind="chosen").row(0, named=True)
    ids = torch.tensor([prompt + line["ids"]])
    with torch.no_grad():
        p, q = (torch.log_softmax(model(input_ids=ids).logits[0].double(), -1) for model in (policy, base))
    at = slice(len(prompt) - 1, ids.shape[1] - 1)
    for name, one, other in (("kl_policy_ref", p, q), ("kl_ref_policy", q, p)):
        expected = (one.exp() * (one - other)).sum(-1)[at]
        np.testing.assert_allclose(line[name], expected, atol=1e-5)
    everything = found.table.filter(side="all")
    for name in ("kl_policy_ref", "kl_ref_policy"):
        weighted = (everything[name] * everything["survivors"]).sum() / 64
        assert weighted == pytest.approx(found.responses["all"][name]["mean"], abs=1e-9)
    assert json.loads((tmp_path / "kl.json").read_text())["all"] == found.responses["all"]
    same = evaluate_kl(run.test, run.policy, run.policy, out=tmp_path / "same", plots=False, **options)
    assert same.table["kl_policy_ref"].abs().max() < 1e-6


def test_kl_by_position_by_hand() -> None:
    store = SegmentStore.from_frame(segments([([9], [1, 2], [3]), ([9], [1], [2, 2, 2]), ([8], [4, 4], [5])]))
    values = {"kl": np.array([1.0, 2, 4, 1, 3, 5, 7, 2, 6, 2])}
    prompts = np.array([0, 0, 1])
    table = kl_by_position(store, values, prompts)
    chosen = table.filter(side="chosen")
    assert chosen["survivors"].to_list() == [3, 2]
    assert chosen["kl"].to_list() == pytest.approx([4 / 3, 4])
    # residuals at position 0: -1/3 and -1/3 of the first prompt together, 2/3 of the second
    error = np.sqrt((2 / 3) ** 2 + (2 / 3) ** 2) / 3
    assert chosen["kl_high"][0] == pytest.approx(4 / 3 + 1.959964 * error)
    found = kl_of_responses(store, values, prompts)
    assert found["chosen"]["kl"]["mean"] == pytest.approx((3 + 1 + 8) / 3)
    assert found["rejected"]["kl"]["mean"] == pytest.approx((4 + 15 + 2) / 3)
    assert found["all"]["kl"]["mean"] == pytest.approx(33 / 6)


def test_the_commands(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    common = [run.test, "--policy", run.policy, "--ref", run.ref, "--tokenizer", str(run.folder / "tokenizer"), *limits]
    words = ["--ratios", "0.5", "--lengths", "2", "8", "--out", str(tmp_path / "a")]
    assert cli.main(["evaluate", "accuracy", *common, *words]) == 0
    shown = capsys.readouterr().out
    assert "| ratio  | 0.5" in shown
    assert "depth: " in shown
    files = {path.name for path in (tmp_path / "a").iterdir() if path.is_file()}
    assert {"accuracy.csv", "accuracy.json", "accuracy.png", "accuracy.svg", "run.log"} <= files
    assert cli.main(["evaluate", "kl", *common, "--out", str(tmp_path / "k")]) == 0
    assert "KL of a whole response, nats" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "k").iterdir() if path.is_file()}
    assert {"kl.csv", "kl.json", "kl.png", "kl.svg", "tokens.parquet"} <= files
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "kl", "--help"])
    assert "--policy" in capsys.readouterr().out
    assert cli.main(["evaluate"]) == 0
    assert cli.main(["evaluate", "acuracy"]) == 2
    assert "did you mean 'accuracy'" in capsys.readouterr().err


def test_what_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ref must be given with signal logratio"):
        evaluate(run, tmp_path, ref=None)
    with pytest.raises(ConfigError, match="ref must be left out with signal logprob"):
        evaluate(run, tmp_path, signal="logprob")
    with pytest.raises(ConfigError, match="method must be left out of an evaluation"):
        evaluate(run, tmp_path, method="sepo")
    with pytest.raises(ArtifactError, match="out must not be the folder of a run"):
        evaluate(run, run.folder / "run")
    with pytest.raises(ConfigError, match="nowhere"):
        evaluate(run, tmp_path / "x", ref="nowhere")


@pytest.mark.parametrize("along", ["policy", "ref"])
def test_kl_along_generated_responses(run: Run, tmp_path: Path, along: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine's divergences of the very tokens that were drawn are those that the sampler recorded."""
    words = ["evaluate", "kl", run.test, "--policy", str(run.policy), "--ref", str(run.ref), "--threads", "1"]
    short = [
        "--along",
        along,
        "--max_new_tokens",
        "9",
        "--samples",
        "2",
        "--out",
        str(tmp_path / "k"),
        "--plots",
        "false",
    ]
    assert cli.main([*words, *short]) == 0, capsys.readouterr().err
    samples, tokens = (pl.read_parquet(tmp_path / "k" / f"{name}.parquet") for name in ("samples", "tokens"))
    assert samples["ids"].to_list() == tokens["ids"].to_list()
    drawn, engine = samples["kl"].explode(), tokens["kl_policy_ref"].explode()
    assert drawn.to_list() == pytest.approx(engine.to_list(), abs=1e-5)
    assert {*samples["led_by"].explode()} == ({"policy"} if along == "policy" else {"mixing"})
    logps = samples[f"logp_{along}"].explode().to_list()
    assert samples["logp_sampled"].explode().to_list() == logps
    table = pl.read_csv(tmp_path / "k" / "kl.csv")
    assert {*table["side"]} == {"all"}
    sums = (table["survivors"] * table["kl_policy_ref"]).sum() / samples.height
    assert sums == pytest.approx(tokens["kl_policy_ref"].list.sum().mean(), abs=1e-5)
    assert cli.main([*words, "--out", str(tmp_path / "d"), "--samples", "2"]) == 2
    assert "samples applies to generated responses; add --along policy or ref" in capsys.readouterr().err


def test_in_bfloat16_and_a_folder_that_is_used_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A precision is an option of every evaluation; what an earlier call alone would have written is gone."""
    test = str(tmp_path / "test.parquet")
    pl.read_parquet(run.test).with_columns(half=pl.int_range(pl.len()) % 2).write_parquet(test)
    cuts = Cuts((0.5, 1), (4,))
    exact = evaluate(run._replace(test=test), tmp_path / "o", cuts=cuts, by="half", plots=True)
    assert (tmp_path / "o" / "accuracy_by_half.png").exists()
    again = evaluate(run._replace(test=test), tmp_path / "o", cuts=cuts, dtype="bfloat16")
    assert not [*(tmp_path / "o").glob("accuracy*.png"), *(tmp_path / "o").glob("accuracy_by*")]
    assert again.table["mean_margin"].to_list() != exact.table["mean_margin"].to_list()
    assert again.table["mean_margin"].to_list() == pytest.approx(exact.table["mean_margin"].to_list(), abs=0.3)
    words = [run.test, "--policy", run.policy, "--ref", run.ref, "--tokenizer", str(run.folder / "tokenizer")]
    limits = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    means = []
    for dtype in ("float32", "bfloat16"):
        out = ["--out", str(tmp_path / dtype), "--dtype", dtype, "--plots", "false"]
        assert cli.main(["evaluate", "kl", *words, *limits, *out]) == 0, capsys.readouterr().err
        means.append(json.loads((tmp_path / dtype / "kl.json").read_text())["all"]["kl_policy_ref"]["mean"])
    assert means[0] != means[1]


def test_one_prompt_has_no_interval(run: Run, tmp_path: Path) -> None:
    one = str(tmp_path / "one.parquet")
    pl.read_parquet(run.test).head(1).write_parquet(one)
    found = evaluate(run._replace(test=one), tmp_path / "a", cuts=Cuts((0.5, 1), (4,)), plots=True)
    assert found.table["low"].null_count() == found.table.height
    assert "(" not in str(found).split("depth:")[1]
    options = {"tokenizer": str(run.folder / "tokenizer"), **LIMITS}
    kl = evaluate_kl(one, run.policy, run.ref, out=tmp_path / "k", **options)
    assert kl.responses["chosen"]["kl_policy_ref"]["low"] is None
    assert kl.table["kl_policy_ref_low"].null_count() == kl.table.height
    assert " to " not in str(kl)


def test_what_is_no_pair_is_said(run: Run, tmp_path: Path) -> None:
    sets = tmp_path / "sets.jsonl"
    sets.write_text(json.dumps({"prompt": "cat", "responses": ["meow", "woof"], "scores": [1, 0]}) + "\n")
    with pytest.raises(ConfigError, match=r"data must be pairs in an evaluation, and '.*' holds candidates"):
        evaluate(run._replace(test=str(sets)), tmp_path / "o")
    with pytest.raises(ConfigError, match="ratios must be a list of numbers"):
        Cuts(ratios=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cuts must be made by Cuts"):
        evaluate(run, tmp_path / "o", cuts={"ratios": (0.5,)})
    with pytest.raises(ConfigError, match="policy must be a directory"):
        evaluate(run._replace(policy=object()), tmp_path / "o")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ref must be given"):
        evaluate_kl(run.test, run.policy, None, out=tmp_path / "o")  # type: ignore[arg-type]
