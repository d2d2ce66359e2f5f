"""Runs with `lora.load_in_4bit`: the reference, the saved policy, ZeRO stages, ranks, and going on after a kill."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import pyprefopt
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model, save_policy, score_logps
from pyprefopt.pipeline import preflight
from pyprefopt.settings.resolve import configure
from tests.pipeline.runs import digest, losses, small, train
from tests.training.ranks import run_ranks

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the optional package bitsandbytes is absent")


@pytest.fixture(scope="module")
def given(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a QLoRA run of DPO on a checkpoint with weights."""
    model = save_policy(load_model(inputs / "config.json", seed=3), tmp_path_factory.mktemp("checkpoint") / "model")
    return {
        "method": "dpo", "model": str(model), "policy_init": "model", "lora": {"r": 4, "load_in_4bit": True},
        "base": {}, "oracle": {}, "learning_rate": 1e-2, "max_steps": 5, "max_tokens_per_batch": 4096,
    }  # fmt: skip


@pytest.fixture(scope="module")
def dpo(inputs: Path, given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, ZeRO 0, not to be changed."""
    directory = tmp_path_factory.mktemp("dpo")
    pyprefopt.train(small(inputs, directory, **given))
    return directory


def own(directory: Path) -> list[float]:
    return [loss for stage, _, loss in losses(directory) if stage == "policy"]


def test_the_policy_starts_as_its_reference_and_is_saved_as_trained(
    dpo: Path, inputs: Path, given: dict[str, Any]
) -> None:
    lines = [json.loads(line) for line in (dpo / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "loss" in line)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert len(set(own(dpo))) == 5
    batch = Packer(SegmentStore.open(dpo / "stages" / "data" / "eval")).pack(max_tokens=10_000)[0].to()
    trained = load_model(given["model"], load_in_4bit=True, lora=small(inputs, dpo, **given).lora)
    adapter = load_file(dpo / "policy" / "adapter" / "adapter_model.safetensors")
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in adapter.items()}
    assert not trained.load_state_dict(named, strict=False).unexpected_keys
    before, after = score_logps(LogpsModel(trained), batch), score_logps(LogpsModel(load_model(dpo / "policy")), batch)
    assert (before - after).abs().max() < 1e-5
    last = next(line for line in reversed(lines) if "eval_logps/chosen" in line)
    chosen = torch.isin(batch.response_index, batch.pair_chosen)
    assert float(after[chosen].sum()) / len(batch.pair_chosen) == pytest.approx(last["eval_logps/chosen"], abs=1e-3)


def test_plain_and_packed_references_do_not_meet_in_a_cache(
    inputs: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    for name, lora in {"packed": given["lora"], "plain": {"r": 4}, "again": given["lora"] | {"r": 2}}.items():
        settings = {**given, "lora": lora, "max_steps": 1, "cache": str(tmp_path / "cache")}
        summary = pyprefopt.train(small(inputs, tmp_path / name, **settings)).summary
        assert summary["stages"]["ref_logps"]["reused"] == (name == "again")
        assert own(tmp_path / name)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(list((tmp_path / "cache").glob("logps-*"))) == 2


@pytest.mark.parametrize(
    "more",
    [
        {"zero_stage": 1}, {"zero_stage": 2, "gradient_checkpointing": True}, {"layout": "separate"},
        {"zero_stage": 2, "deepspeed": "configs/deepspeed/zero2_offload.json"},
    ],
    ids=["zero 1", "zero 2", "separate", "offload"],
)  # fmt: skip
def test_how_it_runs_changes_nothing(
    more: dict[str, Any], dpo: Path, inputs: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    pyprefopt.train(small(inputs, tmp_path, **given, **more))
    assert own(tmp_path) == pytest.approx(own(dpo), abs=1e-5)


def test_bfloat16(inputs: Path, given: dict[str, Any], tmp_path: Path) -> None:
    pyprefopt.train(small(inputs, tmp_path, **given, dtype="bfloat16", zero_stage=1))
    assert own(tmp_path)[0] == pytest.approx(math.log(2), abs=2e-2)
    assert len(set(own(tmp_path))) == 5
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_two_ranks_follow_one(dpo: Path, inputs: Path, given: dict[str, Any], tmp_path: Path) -> None:
    settings = {**given, "zero_stage": 2, "max_tokens_per_batch": 512}
    assert run_ranks(2, train, str(inputs), str(tmp_path / "two"), **settings) == [0, 0]
    assert own(tmp_path / "two") == pytest.approx(own(dpo), abs=1e-5)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_policy(dpo: Path, inputs: Path, given: dict[str, Any], tmp_path: Path) -> None:
    die = ("pyprefopt.training.engine", "Engine.step", 4)  # a checkpoint is written every 2 steps
    assert run_ranks(1, train, str(inputs), str(tmp_path / "run"), die, **given) == [-9]
    assert list((tmp_path / "run").rglob("step-2"))
    assert run_ranks(1, train, str(inputs), str(tmp_path / "run"), **given) == [0]
    assert own(tmp_path / "run") == own(dpo)
    assert digest(tmp_path / "run") == digest(dpo)


def test_tdpo_runs_its_reference_beside_it(inputs: Path, given: dict[str, Any], tmp_path: Path) -> None:
    settings = {**given, "method": "tdpo2", "loss": {"beta": 0.5}, "num_train_epochs": 4.0, "max_steps": -1}
    pyprefopt.train(small(inputs, tmp_path, **settings))
    assert own(tmp_path)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert own(tmp_path)[-1] < own(tmp_path)[0] - 0.02


def test_sepo_trains_its_oracle_so_too(inputs: Path, given: dict[str, Any], tmp_path: Path) -> None:
    stages = {"base": {"path": given["model"]}, "oracle": {"max_steps": 2, "learning_rate": 1e-2}}
    settings = {**given, "method": "sepo", "policy_init": "base", **stages}
    summary = pyprefopt.train(small(inputs, tmp_path, **settings)).summary
    assert {"oracle", "scores", "policy"} <= set(summary["stages"])
    oracle = [loss for stage, _, loss in losses(tmp_path) if stage == "oracle"]
    assert oracle[0] == pytest.approx(math.log(2), abs=1e-6)  # base_logps are those of the base as it was packed


@pytest.mark.slow
def test_compiled(dpo: Path, inputs: Path, given: dict[str, Any], tmp_path: Path) -> None:
    pyprefopt.train(small(inputs, tmp_path, **given, compile="on"))
    assert own(tmp_path) == pytest.approx(own(dpo), abs=1e-5)


def test_a_check_takes_a_step(
    inputs: Path, given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyprefopt.train(small(inputs, tmp_path, **given, check=True))
    assert "check passed" in capsys.readouterr().out


def gpt2(directory: Path) -> str:
    config = AutoConfig.for_model("gpt2", vocab_size=512, n_embd=32, n_layer=1, n_head=2, n_positions=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return str(directory)


def test_a_model_that_was_trained_so_is_not_packed_anew(
    dpo: Path, inputs: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    policy = str(dpo / "policy")
    for changes in ({"model": policy}, {"base": {"path": policy}, "policy_init": "base"}):
        with pytest.raises(
            ConfigError,
            match=r"lora\.load_in_4bit needs a model that was not trained with it.*; leave load_in_4bit out",
        ) as caught:
            pyprefopt.train(small(inputs, tmp_path / "packed", **{**given, **changes}))
        assert ("base.path: " in str(caught.value)) == ("base" in changes)
        assert not (tmp_path / "packed" / "stages").exists()
    with pytest.raises(ConfigError, match="that was not trained with it"):
        load_model(policy, load_in_4bit=True)
    plain = {**given, "lora": {}, "model": policy, "max_steps": 1}
    after = pyprefopt.train(small(inputs, tmp_path / "plain", **plain)).policy  # its weights are as near to the old
    with pytest.raises(ConfigError, match="that was not trained with it"):
        load_model(after, load_in_4bit=True)
    transformers_own = AutoModelForCausalLM.from_pretrained(policy)
    transformers_own.save_pretrained(tmp_path / "copy")
    with pytest.raises(ConfigError, match="that was not trained with it"):
        load_model(tmp_path / "copy", load_in_4bit=True)


def test_what_cannot_be_is_told_at_once(
    inputs: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, message in (
        ({"lora": {"load_in_4bit": True}}, r"lora\.\* needs lora\.r > 0"),
        ({"zero_stage": 3}, r"lora\.load_in_4bit needs zero_stage <= 2, got 3"),
        ({"model": str(inputs / "config.json")}, r"needs model to be a checkpoint.*config\.json'; set model"),
        (
            {"model": "embedded:tiny", "policy_init": "base"},
            r"needs model to be a checkpoint.*got 'embedded:tiny'; set model",
        ),
        ({"policy_init": "base"}, r"does not apply where the run trains its base.*set base\.path to a checkpoint"),
        ({"method": "sepo"}, r"does not apply where the run trains its base"),
        ({"method": "reward", "policy_init": "model"}, r"lora\.load_in_4bit does not apply to method reward"),
    ):
        with pytest.raises(ConfigError, match=message):
            pyprefopt.train(small(inputs, tmp_path, **{**given, **changes}))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel, whose layers are Conv1D; leave load_in_4bit out"):
        pyprefopt.train(small(inputs, tmp_path, **given | {"model": gpt2(tmp_path / "gpt2")}))
    ready = configure(method="dpo", base={"path": given["model"]}, policy_init="base", lora=given["lora"])
    assert ready.lora.load_in_4bit  # the embedded model is not loaded then
    with pytest.raises(ConfigError, match=r"load_in_4bit.*use lora\.load_in_4bit"):
        configure(method="dpo", load_in_4bit=True)

    def missing() -> None:
        raise ConfigError("lora.load_in_4bit needs the package bitsandbytes")

    monkeypatch.setattr(preflight, "require_bitsandbytes", missing)
    with pytest.raises(ConfigError, match="needs the package bitsandbytes"):
        pyprefopt.train(small(inputs, tmp_path, **given))
    assert not (tmp_path / "stages" / "data").exists()
