from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.modeling import LogpsModel, load_model, model_hash, save_policy
from pyprefopt.modeling.checkpoints.adapters import merged_state_dict
from tests.modeling.models import ARCHITECTURES, make_groups, packed_model, plain_logps
from tests.modeling.test_logps import Lora
from tests.reference.packing import pack_groups


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_loads_what_is_saved(name: str, tmp_path: Path) -> None:
    model, groups = packed_model(name), make_groups()
    assert save_policy(model, tmp_path / "policy") == tmp_path / "policy"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", attn_implementation="eager").eval()
    ours = model.causal.state_dict()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in loaded.state_dict().items())
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert "pyprefopt" not in json.dumps(config)
    assert (config["use_cache"], config["attention_dropout"], config["dtype"]) == (True, 0.1, "float32")
    assert config["architectures"] == [type(model.causal).__name__]
    with torch.no_grad():
        assert (plain_logps(loaded, groups) - model(pack_groups(groups).to())).abs().max() < 1e-5
    default = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert default.config._attn_implementation in ("sdpa", "eager")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy"]


def test_tied_weights_stand_once(tmp_path: Path) -> None:
    model = packed_model("qwen2")
    exported = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # no longer the same memory
    for number, state_dict in enumerate((None, exported, {k: v for k, v in exported.items() if "lm_head" not in k})):
        saved = save_policy(model, tmp_path / str(number), state_dict=state_dict)
        with safe_open(saved / "model.safetensors", "pt") as file:
            assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        loaded = AutoModelForCausalLM.from_pretrained(saved)
        assert torch.equal(loaded.lm_head.weight, model.causal.lm_head.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_is_merged_with_the_adapter_beside(dtype: str, tmp_path: Path) -> None:
    model = packed_model("llama", lora=Lora(), dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = save_policy(model, tmp_path / "policy")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    merged = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype).state_dict()
    base = AutoModelForCausalLM.from_config(model.causal.source_config, dtype=getattr(torch, dtype))
    stripped = {
        name.removeprefix("model.base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in before.items()
        if ".lora_" not in name
    }
    base.load_state_dict(stripped)
    theirs = PeftModel.from_pretrained(base, saved / "adapter").merge_and_unload().state_dict()
    assert merged.keys() == theirs.keys()
    tolerance = 1e-6 if dtype == "float32" else 2e-2  # PEFT rounds B A to bfloat16 before it adds
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], stripped["model.layers.0.mlp.up_proj.weight"])
    assert model_hash(saved) != model_hash(save_policy(packed_model("llama", dtype=dtype), tmp_path / "plain"))


def test_an_adapter_is_the_same_bytes_from_everywhere(tmp_path: Path) -> None:
    saved = [
        save_policy(packed_model("llama", lora=Lora()), tmp_path / name) for name in ("a", "b")
    ]  # two source paths
    contents = [{p.relative_to(d).as_posix(): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in saved]
    assert contents[0] == contents[1]
    assert sorted(p.name for p in (saved[0] / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    targets = json.loads((saved[0] / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_an_exported_state_dict_replaces_the_weights(tmp_path: Path) -> None:
    model = packed_model("llama", lora=Lora())
    exported = {name: tensor + 0.5 for name, tensor in model.state_dict().items()}
    expected = merged_state_dict(
        model.model,
        {
            k.removeprefix(
                "model.",
            ): v
            for k, v in exported.items()
        },
    )
    loaded = AutoModelForCausalLM.from_pretrained(save_policy(model, tmp_path / "policy", state_dict=exported))
    assert all(torch.equal(expected[name], tensor) for name, tensor in loaded.state_dict().items())


def test_a_state_dict_with_other_names_is_refused(tmp_path: Path) -> None:
    model = packed_model("llama")
    state_dict = dict(model.state_dict())
    with pytest.raises(ArtifactError, match="1 names that the model does not know"):
        save_policy(model, tmp_path / "policy", state_dict=state_dict | {"model.extra": torch.zeros(1)})
    del state_dict["model.lm_head.weight"]
    with pytest.raises(ArtifactError, match=r"1 names that the model also needs \(first: 'lm_head.weight'\)"):
        save_policy(model, tmp_path / "policy", state_dict=state_dict)
    assert not list(tmp_path.iterdir())


def test_all_or_nothing(tmp_path: Path) -> None:
    model, other = packed_model("llama"), packed_model("mistral")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    saved = save_policy(model, tmp_path / "policy", [tokenizer])
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    assert "tokenizer.json" in before
    with pytest.raises(FileNotFoundError):
        save_policy(other, saved, [tmp_path / "missing.json"])
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    save_policy(other, saved)
    assert json.loads((saved / "config.json").read_text())["model_type"] == "mistral"
    assert not (saved / "tokenizer.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy", "tokenizer.json"]


def test_lora_on_a_tied_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.target_modules: \['lm_head'\] share weights with the embeddings"):
        packed_model("qwen2", lora=Lora(target_modules=("q_proj", "lm_head")))


def test_unknown_lora_targets() -> None:
    with pytest.raises(
        ConfigError, match=r"lora.target_modules: the model has no layer 'q_porj'; did you mean 'q_proj'"
    ):
        packed_model("llama", lora=Lora(target_modules=("q_porj",)))


def test_adapters_start_from_the_seed_and_change_nothing() -> None:
    batch = pack_groups(make_groups()).to()
    with torch.no_grad():
        weights = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            model = load_lora(seed=7)
            assert torch.equal(before, torch.get_rng_state())
            weights.append(model.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        adapted, plain = LogpsModel(model), LogpsModel(model.get_base_model())
        logps = adapted(batch)
        with model.disable_adapter():
            assert torch.equal(logps, plain(batch))


def load_lora(seed: int) -> PeftModel:
    import tempfile

    from tests.modeling.models import write_config

    with tempfile.TemporaryDirectory() as directory:
        return load_model(write_config(Path(directory), ARCHITECTURES["llama"]), lora=Lora(), seed=seed)
