"""What users get wrong or lose: told early and by name, or mended by the next run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import pyprefopt
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.tokenization.segments import load_tokenizer
from pyprefopt.errors import ArtifactError, ConfigError, DataError
from pyprefopt.pipeline.preflight import check_given, check_start
from pyprefopt.pipeline.run import RunResult
from pyprefopt.stages.splits import hold_out
from tests.modeling.made_up import made_up
from tests.pipeline.runs import MODEL, digest, losses, small, train
from tests.pipeline.test_overwrite import stop_at
from tests.training.ranks import run_ranks

ONE_STAGE: dict[str, Any] = {"method": "simpo", "base": {}, "oracle": {}, "policy_init": None, "max_steps": 1}


def test_check_on_two_ranks_ends(inputs: Path, tmp_path: Path) -> None:
    assert run_ranks(2, train, str(inputs), str(tmp_path / "run"), check=True) == [0, 0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lost", ["policy/model.safetensors", "stages/data/train", "stages/base/model/config.json"])
def test_what_is_lost_is_made_again(lost: str, sepo: RunResult, inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(sepo.output_dir, run)
    path = run / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = pyprefopt.train(small(inputs, run))
    assert path.exists()
    assert not all(stage["reused"] for stage in again.summary["stages"].values())
    assert digest(run) == digest(sepo.output_dir)


@pytest.mark.parametrize("why", ["settings", "checkpoints", "folder"])
def test_a_training_that_begins_anew_says_so(
    why: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(inputs, tmp_path / "run", **ONE_STAGE | {"max_steps": 4})
    with monkeypatch.context() as patch:
        stop_at("pyprefopt.training.trainer.accumulate", 4, patch)
        with pytest.raises(KeyboardInterrupt):
            pyprefopt.train(config)
    assert "anew" not in caplog.text
    stage = tmp_path / "run" / "stages" / "policy"
    if why == "checkpoints":
        shutil.rmtree(stage / "checkpoints" / "step-2")
    if why == "folder":
        shutil.rmtree(stage)
    again = replace(config, seed=1) if why == "settings" else config
    pyprefopt.train(again)
    assert caplog.text.count("begins anew") == 1
    steps = [step for _, step, _ in losses(tmp_path / "run")]
    assert steps == [1, 2, 3, 4]


def test_a_row_that_no_micro_batch_holds_is_told_before_training(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row \d+.*raise max_tokens_per_batch, or lower max_tokens$"):
        pyprefopt.train(small(inputs, tmp_path, **ONE_STAGE, max_tokens_per_batch=40))


def test_a_context_that_is_too_short_is_told(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"max_position_embeddings": 32}))
    with pytest.raises(ConfigError, match=r"must be at most 32.*max_position_embeddings.*; set max_tokens to 32"):
        pyprefopt.train(small(inputs, tmp_path / "run", **ONE_STAGE, model=str(tmp_path / "config.json")))


def test_long_prompts_are_cut_as_the_error_says(inputs: Path, tmp_path: Path) -> None:
    short = {**ONE_STAGE, "max_prompt_tokens": 8, "max_tokens": 128}
    with pytest.raises(DataError, match="set prompt_overflow to keep_end"):
        pyprefopt.train(small(inputs, tmp_path / "run", **short))
    pyprefopt.train(small(inputs, tmp_path / "run", **short, prompt_overflow="keep_end"))
    store = SegmentStore.open(tmp_path / "run" / "stages" / "data" / "train")
    assert (store.num_rows, int(store.lengths[store.segments == 0].max())) == (64, 8)


def test_long_prompts_are_dropped_and_counted(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = pl.read_parquet(inputs / "train.parquet").with_row_index()
    longer = pl.when(pl.col("index") < 5).then(pl.col("prompt") + " " + pl.col("prompt")).otherwise("prompt")
    rows.with_columns(prompt=longer).drop("index").write_parquet(tmp_path / "pairs.parquet")
    settings = {**ONE_STAGE, "max_prompt_tokens": 12, "max_tokens": 128, "prompt_overflow": "drop"}
    settings["data"] = str(tmp_path / "pairs.parquet")
    run = pyprefopt.train(small(inputs, tmp_path / "run", **settings))
    facts = run.summary["stages"]["data"]
    assert facts["rows_dropped"] == {"prompt_dropped": facts["rows_rejected"]} == {"prompt_dropped": 5}
    assert facts["rows_used"] == facts["rows_in"] - 5
    store = SegmentStore.open(tmp_path / "run" / "stages" / "data" / "train")
    assert int(store.lengths[store.segments == 0].max()) <= 12
    told = f"5 of {facts['rows_in']} rows are left out, whose prompts are longer than max_prompt_tokens"
    assert told in caplog.text
    assert "left out as bad" not in caplog.text
    few = (
        f"trains for 1 optimizer step only ({facts['train']['rows']} rows of global_batch_size 16); lower global_batch"
    )
    assert few in caplog.text
    lines = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {"prompt_dropped"}
    tokenizer = load_tokenizer(inputs / "tokenizer")
    limits = {"max_prompt_tokens": 12, "max_tokens": 128, "prompt_overflow": "drop"}
    for _ in range(2):  # made, and found ready
        made = prepare(settings["data"], tokenizer, tmp_path / "folder", **limits)
        assert set(made.manifest["rejected"]) == {"prompt_dropped"}
    again = pyprefopt.train(small(inputs, tmp_path / "again", **settings | {"data": str(tmp_path / "folder")}))
    assert digest(again.output_dir) == digest(run.output_dir)


def test_a_nan_score_names_its_row(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    oracle = tmp_path / "oracle"
    shutil.copytree(sepo.output_dir / "stages/oracle/model", oracle)
    weights = load_file(oracle / "model.safetensors")
    ids = SegmentStore.open(sepo.output_dir / "stages/data/train").table["ids"][1].as_py()  # the first chosen response
    weights["model.embed_tokens.weight"][ids[3]] = float("nan")
    save_file(weights, oracle / "model.safetensors", {"format": "pt"})
    base = {"path": str(sepo.output_dir / "stages/base/model")}
    with pytest.raises(DataError, match=r"train row 0, chosen, token \d+: the oracle's score must be finite, got nan"):
        pyprefopt.train(small(inputs, tmp_path / "run", oracle={"path": str(oracle)}, base=base))


@pytest.mark.parametrize("section", ["base", "oracle"])
def test_ready_checkpoints_are_looked_at_first(section: str, inputs: Path, tmp_path: Path) -> None:
    given = {"policy_init": "model", "base": {}, section: {"path": str(tmp_path / "absent")}}
    with pytest.raises(ConfigError, match=rf"^{section}\.path: model must exist"):
        pyprefopt.train(small(inputs, tmp_path, **given))
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"oracle": {"path": "{tmp}"}, "rewards": {"beta": 1.0}, "policy_init": "model", "base": {}},
            r"oracle\.path: model must be a directory with a con",
        ),
        ({"rewards": {"name": "strong_weak", "strong": "./no", "weak": "./no"}}, r"rewards\.strong: model must exist"),
        (
            {"rewards": {"name": "contrastive", "better_prompt": "no.txt"}},
            r"rewards\.better_prompt must be an existing",
        ),
        (
            {"rewards": {"name": "column", "column": "credit"}},
            r"column must be .* data '.*no 'chosen_credit', got 'cr",
        ),
        ({"rewards": {"name": "column", "column": "chosen_planted"}}, r"chosen_planted'; did you mean 'planted'\?;"),
        ({"rewards": {"name": "column", "column": "plantd"}}, r"'chosen_plantd', got 'plantd'; did you mean 'planted'"),
        ({"model": "./nothing"}, r"model must exist, got './nothing'"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_what_settings_name_is_looked_at_before_the_data(
    kind: str, settings: dict[str, Any], message: str, inputs: Path, tmp_path: Path
) -> None:
    data = tmp_path / f"pairs.{kind}"
    frame = pl.read_parquet(inputs / "train.parquet")
    frame.write_ndjson(data) if kind == "jsonl" else frame.write_parquet(data)
    given = json.loads(json.dumps(settings).replace("{tmp}", str(tmp_path)))
    given["rewards"] = {"name": "dpo", **given.get("rewards", {})}
    oracle = {"oracle": {}} | ({} if given["rewards"]["name"] == "dpo" else {"policy_init": "base"})
    run = small(inputs, tmp_path / "run", **{"method": "tgdpo", **oracle, "data": str(data), **given})
    with pytest.raises((ConfigError, DataError), match=message):
        pyprefopt.train(run)
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("setting", ["model", "base.path", "oracle.path", "rewards.strong"])
def test_damaged_weights_are_told_before_the_data(setting: str, inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    shutil.copytree(sepo.output_dir / "policy", tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    cut = str(tmp_path / "cut")
    settings: dict[str, Any] = {
        "model": {"model": cut}, "base.path": {"base": {"path": cut}},
        "oracle.path": {"oracle": {"path": cut}, "base": {}, "policy_init": "model"},
        "rewards.strong": {
            "method": "tgdpo", "oracle": {},
            "rewards": {"name": "strong_weak", "strong": cut, "weak": str(sepo.output_dir / "policy")},
        },
    }[setting]  # fmt: skip
    told = "model must" if setting == "model" else rf"{setting}: model must"
    with pytest.raises(ConfigError, match=rf"^{told} have whole weights, but '.*cut short"):
        pyprefopt.train(small(inputs, tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "stages").exists()


OWN_ATTENTION = made_up("keeps the layout", vocab_size=512)
BIAS = made_up("has a bias", vocab_size=512)
GPT2 = {"model_type": "gpt2", "vocab_size": 512, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256}
GIVEN = "{tmp}/config.json"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a CUDA device")
@pytest.mark.parametrize("way", ["flash", "varlen", "flex"])
def test_a_way_that_this_machine_cannot_go_is_told_before_the_data(way: str, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^attention must .*, got '{way}': it needs a CUDA device.*; set attention"):
        pyprefopt.train(small(inputs, tmp_path, attention=way))
    with pytest.raises(ConfigError, match=r"^head_kernel triton needs .*; set head_kernel torch"):
        pyprefopt.train(small(inputs, tmp_path, head_kernel="triton"))
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            OWN_ATTENTION,
            {"model": GIVEN, "attention": "loop"},
            r"^MadeUpFor.* does not take another attention;.* set attention auto or unpacked",
        ),
        (
            OWN_ATTENTION,
            {"oracle": {"path": GIVEN}, "attention": "loop", "base": {}, "policy_init": "model"},
            r"^oracle\.path: MadeUpForCausalLM .* does not take another atten",
        ),
        (
            BIAS,
            {"model": GIVEN, "attention": "loop"},
            r"LlamaAttention asks for position_bias \(a learned position bias\)",
        ),
        (
            MODEL | {"layer_types": ["conv"]},
            {"model": GIVEN, "attention": "loop"},
            r"layers of type \['conv'\].*; set attention auto or unpacked",
        ),
        (MODEL, {"model": GIVEN, "tokenizer": None}, r"brings no tokenizer; set tokenizer to"),
        (
            MODEL,
            {"lora": {"r": 2, "target_modules": ["foo"]}},
            r"modules: the model has no layer 'foo'; its .*down_proj, ",
        ),
        (
            MODEL,
            {"lora": {"r": 2, "target_modules": ["q_prj"]}, "model": "embedded:tiny"},
            r"'q_prj'; did you mean 'q_proj'\?",
        ),
        (
            MODEL,
            {"lora": {"r": 2, "target_modules": ["input_layernorm"]}},
            r"modules: Target module Llama.*RMSN",
        ),
        (
            MODEL,
            {"lora": {"r": 2, "target_modules": ["embed_tokens"]}},
            r"modules must be linear.*\(Embedding\)",
        ),
        (GPT2, {"model": GIVEN, "lora": {"r": 2}}, r"lora\.target_modules must be linear.*\(Conv1D\); name others, or"),
    ],
)
def test_what_needs_no_weights_is_told_before_the_data(
    model: dict[str, Any], settings: dict[str, Any], message: str, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model))
    given = json.loads(json.dumps(settings).replace("{tmp}", str(tmp_path)))
    with pytest.raises(ConfigError, match=message):
        pyprefopt.train(small(inputs, tmp_path / "run", **given))
    assert not (tmp_path / "run" / "stages").exists()


def test_what_users_would_load_otherwise_is_refused_before_anything_is_trained(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYPREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_save", {"model.norm.weight"})
    with pytest.raises(ConfigError, match="would be saved, but AutoModelForCausalLM misses 1 of its weights"):
        pyprefopt.train(small(inputs, tmp_path / "run"))
    assert not (tmp_path / "run" / "stages").exists()


def test_what_users_load_otherwise_is_an_error_and_stays(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LlamaForCausalLM.save_pretrained

    def write_others(model: LlamaForCausalLM, folder: Path, state_dict: dict[str, torch.Tensor]) -> None:
        last = state_dict["model.norm.weight"] + (".partial-" in str(folder) and "policy" in str(folder))
        write(model, folder, state_dict=state_dict | {"model.norm.weight": last})

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", write_others)
    with pytest.raises(ArtifactError, match=r"policy has .*, but AutoModelForCausalLM reads other numbers in"):
        pyprefopt.train(small(inputs, tmp_path / "run", **ONE_STAGE))
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


def test_a_model_that_only_brings_the_tokenizer_may_be_of_any_architecture(
    inputs: Path, sepo: RunResult, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN_ATTENTION))
    base = {"path": str(sepo.output_dir / "stages/base/model")}
    settings = {"model": str(tmp_path / "config.json"), "attention": "loop"}
    check_start(small(inputs, tmp_path / "run", **settings, base=base))
    with pytest.raises(ConfigError, match="MadeUpForCausalLM"):
        check_start(small(inputs, tmp_path / "run", **settings))


def test_code_that_cannot_do_without_numbers_is_left_for_later(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import torch\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "    def __init__(self, config):\n        super().__init__(config)\n        float(torch.ones(1))\n"
    )
    (tmp_path / "own.py").write_text(code)
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"model_type": "own", "auto_map": auto_map}))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    config = small(inputs, tmp_path / "run", **ONE_STAGE, model=str(tmp_path), trust_remote_code=True)
    with caplog.at_level("DEBUG", "pyprefopt"):
        check_start(config)
    assert f"{tmp_path} was not looked at early: " in caplog.text


def test_a_column_that_only_later_rows_have_is_found(inputs: Path, tmp_path: Path) -> None:
    rows = pl.read_parquet(inputs / "train.parquet").drop("chosen_planted", "rejected_planted").to_dicts()
    spans = {f"{side}_credit": [{"start": 0, "end": 1, "weight": 1.0}] for side in ("chosen", "rejected")}
    rows = [*rows[:9], rows[9] | spans]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rewards = {"name": "column", "column": "credit"}
    check_given(small(inputs, tmp_path, method="tgdpo", oracle={}, data=str(tmp_path / "pairs.jsonl"), rewards=rewards,
                      eval_data=None))  # fmt: skip


def test_excluded_ids_must_be_tokens(inputs: Path, tmp_path: Path) -> None:
    selection = {"chosen_ratio": 0.3, "rejected_ratio": 0.3, "excluded_ids": [3, 99999]}
    with pytest.raises(ConfigError, match=r"selection\.excluded_ids must be token ids, below \d+, got \[99999\]"):
        pyprefopt.train(small(inputs, tmp_path, selection=selection, loss={"normalizer": "selected"}))
    assert not (tmp_path / "stages" / "base").exists()


def test_a_base_of_another_vocabulary_is_refused(inputs: Path, sepo: RunResult, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(sepo.output_dir / "stages/base/model", base)
    tokenizer = base / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b'"meow"', b'"moew"'))
    with pytest.raises(ConfigError, match=r"base\.path must be a model with the policy's vocabulary.*meow"):
        pyprefopt.train(small(inputs, tmp_path / "run", base={"path": str(base)}))


def test_a_deepspeed_file_is_read_before_anything_is_made(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deepspeed.*absent\.json"):
        pyprefopt.train(small(inputs, tmp_path, **ONE_STAGE, deepspeed=str(tmp_path / "absent.json")))
    assert not (tmp_path / "stages").exists()


def test_a_config_without_tokenizer_asks_for_one(inputs: Path, tmp_path: Path) -> None:
    shutil.copy(inputs / "config.json", tmp_path / "tiny.json")
    with pytest.raises(ConfigError, match="brings no tokenizer; set tokenizer to"):
        pyprefopt.train(small(inputs, tmp_path / "run", **ONE_STAGE, model=str(tmp_path / "tiny.json"), tokenizer=None))


def test_columns_of_ours_by_chance_are_left_alone(inputs: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(inputs / "train.parquet").with_columns(pl.lit("mine").alias("chosen_planted"))
    frame.write_parquet(tmp_path / "pairs.parquet")
    result = pyprefopt.train(small(inputs, tmp_path / "run", **ONE_STAGE, data=str(tmp_path / "pairs.parquet")))
    assert result.summary["stages"]["policy"]["steps"] == 1


def test_hold_out_keeps_prompts_together() -> None:
    frame = pl.DataFrame({"row": pl.Series(range(30), dtype=pl.UInt64), "prompt": [f"p{i // 3}" for i in range(30)]})
    kept, held = hold_out(frame, 0.2, seed=3)
    assert held.height == 6
    assert set(kept["prompt"]).isdisjoint(held["prompt"])
    assert sorted([*kept["row"], *held["row"]]) == list(range(30))
    assert hold_out(frame, 0.2, seed=3)[1].equals(held)
    assert not hold_out(frame, 0.2, seed=4)[1].equals(held)
    with pytest.raises(DataError, match="all rows have the same one"):
        hold_out(frame.with_columns(prompt=pl.lit("p")), 0.2, seed=3)
