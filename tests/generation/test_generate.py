"""`pyprefopt.generate` and `pyprefopt generate`: prompts in, samples out, whatever stops or divides the work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pyprefopt
from pyprefopt import data
from pyprefopt.cli.generation.generate import make_decoders
from pyprefopt.cli.main import main
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.generation.decoders import Greedy, KLThreshold, LengthControl, Mixing
from pyprefopt.generation.generate import SCHEMA
from pyprefopt.generation.prompts import read_prompts
from pyprefopt.stages.generation import samples as stage
from tests.generation.conftest import PROMPTS
from tests.pipeline.runs import small


def command(prompts: Path, models: tuple[Path, Path], out: Path, *words: str, ref: bool = True) -> int:
    given = ["--policy", str(models[0]), *(["--ref", str(models[1])] if ref else [])]
    quick = ["--max_new_tokens", "8", "--threads", "1", "--log_level", "warning", "--max_tokens_per_batch", "256"]
    return main(
        [
            "generate",
            str(prompts),
            *given,
            *quick,
            "--output_dir",
            str(out.parent / "stages"),
            "--out",
            str(out),
            *words,
        ]
    )


def test_samples_from_python(models: tuple[Path, Path]) -> None:
    policy, ref = models
    table = pyprefopt.generate(policy, PROMPTS, ref=ref, decode=Mixing(a=0.5), samples=2, max_new_tokens=8)
    assert dict(table.schema) == SCHEMA
    assert table.select("row", "sample").rows() == [(row, k) for row in range(4) for k in range(2)]
    lengths = table["ids"].list.len()
    for column in ("logp_policy", "logp_ref", "logp_sampled", "kl", "led_by"):
        assert (table[column].list.len() == lengths).all()
    chats = table["messages"].to_list()
    assert [chat[0]["content"] for chat in chats[::2]] == PROMPTS
    assert [chat[-1]["content"] for chat in chats] == table["response"].to_list()
    alone = pyprefopt.generate(policy, PROMPTS, samples=2, max_new_tokens=8)
    assert alone["logp_ref"].null_count() == alone.height
    again = pyprefopt.generate(policy, PROMPTS[:2], samples=2, max_new_tokens=8, max_tokens_per_batch=20)
    assert again["ids"].to_list() == alone["ids"].to_list()[:4]
    turned = pyprefopt.generate(policy, [*PROMPTS[::-1], PROMPTS[0]], samples=2, max_new_tokens=8)
    by_prompt = [turned["ids"].to_list()[2 * place : 2 * place + 2] for place in range(5)]
    assert [ids for own in by_prompt[3::-1] for ids in own] == alone["ids"].to_list()
    assert by_prompt[4] != by_prompt[3]  # the same prompt again
    other = pyprefopt.generate(policy, PROMPTS, samples=2, max_new_tokens=8, seed=1)
    assert other["ids"].to_list() != alone["ids"].to_list()
    same = pyprefopt.generate(policy, PROMPTS, ref=policy, decode=KLThreshold(b=0.5), max_new_tokens=8)
    assert {kl for row in same["kl"].to_list() for kl in row} == {0.0}


def test_prompts_come_from_every_kind_of_rows(inputs: Path, tmp_path: Path) -> None:
    user = [{"role": "user", "content": "cow"}]
    kinds: dict[str, list[dict[str, Any]]] = {
        "texts": [{"prompt": "cow"}],
        "chats": [{"prompt": user}],
        "messages": [{"messages": user}],
        "turns": [{"messages": [*user, {"role": "assistant", "content": "moo"}, {"role": "user", "content": "cow"}]}],
        "pairs": [{"prompt": "cow", "chosen": "moo", "rejected": "meow"}],
        "sets": [{"prompt": "cow", "responses": ["moo", "meow"], "scores": [1, 0]}],
        "examples": [{"messages": [*user, {"role": "assistant", "content": "moo"}]}],
        "answered": [{"prompt": "cow", "response": "moo"}],
    }
    for name, rows in kinds.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        pl.DataFrame(rows).write_parquet(tmp_path / f"{name}.parquet")
        for file in (path, tmp_path / f"{name}.parquet"):
            found = read_prompts(str(file))["prompt"].to_list()
            assert [said["content"] for said in found[0]] == (["cow", "moo", "cow"] if name == "turns" else ["cow"]), (
                file
            )
    (tmp_path / "a.csv").write_text("question\ncow\n")
    assert read_prompts(str(tmp_path / "a.csv"), columns=["prompt=question"]).height == 1
    with pytest.raises(DataError, match="question"):
        read_prompts(str(tmp_path / "a.csv"))
    (tmp_path / "b.jsonl").write_text('{"prompt": "cow"}\n{"prompt": 5}\n{"prompt": ""}\n')
    with pytest.raises(DataError, match=r"2 of 3 rows(.|\n)*b\.jsonl, row 2, prompt(.|\n)*b\.jsonl, row 1, prompt"):
        read_prompts(str(tmp_path / "b.jsonl"))
    assert read_prompts(str(tmp_path / "b.jsonl"), on_error="skip")["row"].to_list() == [0]


def test_the_command_writes_what_candidates_are_read_from(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.parquet"
    assert command(prompts, models, out, "--samples", "3", "--temperature", "0.8", "--top_p", "0.9") == 0
    printed = capsys.readouterr().out
    assert "samples.parquet: 12 samples" in printed
    written = pl.read_parquet(out)
    shown = [cell.strip() for cell in printed.splitlines()[2].split("|")[1:-1]]
    sums = [written[name].list.sum() for name in ("logp_sampled", "logp_ref", "kl")]
    cost, divergence = (sums[0] - sums[1]).mean(), sums[2].mean()
    assert [float(cell) for cell in shown] == pytest.approx(
        [12, written["finished"].mean(), written["ids"].list.len().mean(), cost, divergence], abs=0.06
    )
    plain = pyprefopt.generate(
        models[0], str(prompts), ref=models[1], samples=3, temperature=0.8, top_p=0.9, max_new_tokens=8
    )
    assert written["ids"].to_list() == plain["ids"].to_list()
    sets = data.read_candidates(str(out))
    assert sets["responses"].list.len().to_list() == [3] * 4
    assert [chat[-1]["content"] for row in sets["responses"].to_list() for chat in row] == written["response"].to_list()
    assert main(["pairs", str(out), "--out", str(tmp_path / "pairs.jsonl")]) == 2
    assert "responses without a score: 12" in capsys.readouterr().err  # `sample` is no score
    assert command(prompts, models, out) == 2
    assert "is there already; choose another --out" in capsys.readouterr().err
    assert command(prompts, models, out, "--overwrite") == 0


def test_a_grid_has_a_column_for_what_differs(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.parquet"
    assert command(prompts, models, out, "--decode", "mixing", "--a", "0", "0.5", "1") == 0
    grid = pl.read_parquet(out)
    assert grid["a"].to_list() == [a for a in (0, 0.5, 1) for _ in PROMPTS]
    for a in (0, 0.5, 1):
        alone = pyprefopt.generate(models[0], str(prompts), ref=models[1], decode=Mixing(a=a), max_new_tokens=8)
        assert grid.filter(a=a)["ids"].to_list() == alone["ids"].to_list()


def test_a_killed_call_goes_on_and_the_bytes_are_the_same(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "PART_SAMPLES", 5)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert command(prompts, models, tmp_path / "one" / "a.parquet", "--samples", "4") == 0
    made, write = [], stage.atomic_write

    def dying(path: Path, *rest: Any) -> None:
        made.append(path)
        if len(made) == 3:
            raise KeyboardInterrupt
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "atomic_write", dying)
        assert command(prompts, models, tmp_path / "two" / "a.parquet", "--samples", "4") == 130
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(stage, "atomic_write", lambda path, *rest: (done.append(path), write(path, *rest)))
        assert command(prompts, models, tmp_path / "two" / "a.parquet", "--samples", "4") == 0
    assert len(done) == 4 - 2 + 1  # the parts that were missing, and the whole
    assert (tmp_path / "one" / "a.parquet").read_bytes() == (tmp_path / "two" / "a.parquet").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decode", "mixing"], "decode Mixing draws from two models; give ref"),
        (["--a", "0.5"], "a does not apply to decode sample, which takes none of a, t, b"),
        (["--decode", "length_control", "--b", "1"], "b does not apply to decode length_control, which takes t"),
        (["--decode", "kl_threshold", "--a", "0.5"], "a applies to decode kl_threshold with below mixing alone"),
        (["--decode", "beam"], "decode must be one of"),
        (["--top_p", "0"], r"top_p must be in \(0, 1\]"),
        (["--samples", "0"], "samples must be > 0"),
        (["--out", "x.jsonl"], "out must be a .parquet file"),
        (["--learning_rate", "1"], "unknown setting 'learning_rate'"),
    ],
)
def test_what_does_not_fit_is_said(
    words: list[str], message: str, models: tuple[Path, Path], prompts: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(prompts, models, tmp_path / "out.parquet", *words, ref=False) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "stages").exists()


def test_decoders_of_the_options() -> None:
    assert make_decoders({"decode": "greedy"}) == [Greedy()]
    assert make_decoders({"decode": "length_control", "t": (5, 10)}) == [LengthControl(5), LengthControl(10)]
    grid = make_decoders({"decode": "kl_threshold", "b": (0.1, 1.0), "a": (0.5,), "below": "mixing"})
    assert grid == [KLThreshold(0.1, "mixing", 0.5), KLThreshold(1.0, "mixing", 0.5)]
    with pytest.raises(ConfigError, match=r"decode must be one of .*did you mean 'greedy'"):
        pyprefopt.generate("nowhere", ["a"], decode="gready")


def test_prompts_that_are_too_long_are_named(models: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"prompt 1 has 30\d tokens, .*reads 256"):
        pyprefopt.generate(models[0], ["cow", "cow " * 300], max_new_tokens=4)


def test_the_row_of_a_prompt_that_is_too_long_is_said(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("cow", "cow " * 300)))
    assert command(path, models, tmp_path / "o.parquet") == 2
    assert re.search(r"row 1: the prompt has 30\d tokens, and the models read 256", capsys.readouterr().err)


def test_an_adapter_is_put_on_its_reference(
    inputs: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One model serves as both, and says what the merged policy says beside the model that was trained."""
    settings: dict[str, Any] = {"base": {"max_steps": 2}, "oracle": {}, "max_steps": 3, "learning_rate": 0.05}
    run = pyprefopt.train(small(inputs, tmp_path / "run", method="dpo", lora={"r": 4}, **settings))
    base, adapter = next((tmp_path / "run" / "stages").glob("base*/model")), run.policy / "adapter"
    made, names = {}, ("logp_policy", "logp_ref", "kl")
    for name, policy in (("merged", run.policy), ("apart", adapter)):
        out = tmp_path / name / "out.parquet"
        out.parent.mkdir()
        assert command(prompts, (policy, base), out, "--tokenizer", str(run.policy)) == 0
        made[name] = pl.read_parquet(out)
    assert made["apart"]["ids"].to_list() == made["merged"]["ids"].to_list()
    for name in names:
        flat = [made[way][name].explode().to_list() for way in ("apart", "merged")]
        assert flat[0] == pytest.approx(flat[1], abs=1e-4)
    assert made["apart"]["kl"].explode().max() > 1e-3
    assert command(prompts, (adapter, base), tmp_path / "x.parquet", ref=False) == 2
    assert "give ref, the model that it was trained on" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="ref must be the model that the adapter was trained on"):
        pyprefopt.generate(adapter, ["cow"])
    (adapter / "adapter_model.safetensors").unlink()
    assert command(prompts, (adapter, base), tmp_path / "x.parquet", "--tokenizer", str(run.policy)) == 2
    assert "has no adapter_model.safetensors" in capsys.readouterr().err
