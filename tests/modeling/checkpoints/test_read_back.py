"""What is saved is loaded as users load it, and compared: each way in which a folder can be wrong is seen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.modeling import load_model, save_policy
from pyprefopt.modeling.checkpoints import read_back
from pyprefopt.modeling.checkpoints.adapters import merged_state_dict
from pyprefopt.modeling.checkpoints.save import rehearse_saving
from pyprefopt.modeling.packed_model import PackedModel
from tests.modeling.models import ARCHITECTURES, packed_model, write_config
from tests.modeling.test_logps import Lora
from tests.modeling.test_reward_head import reward_model

DOCUMENTS = [[5, 9, 2, 200, 17, 3, 3, 8], list(range(40, 90))]


def difference(model: PackedModel, folder: Path) -> str | None:
    weights = dict(model.model.state_dict())
    return read_back.find_difference(model.model, folder, weights, merged_state_dict(model.model, weights), DOCUMENTS)


def settings(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name, {"format": "pt"})

    return rewrite


WEIGHTS, ADAPTER = "model.safetensors", "adapter/adapter_model.safetensors"
ATTENTION = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
ALTERED = {
    "a tensor dropped": (
        "llama", {}, tensors(WEIGHTS, lambda found: found.pop("model.norm.weight")),
        r"AutoModelForCausalLM misses 1 of its weights \(first: model.norm.weight\)",
    ),
    "a tensor more": (
        "llama", {}, tensors(WEIGHTS, lambda found: found.update(more=torch.ones(2))), r"does not use 1 .*: more\)",
    ),
    "fewer layers": ("llama", {}, settings("config.json", num_hidden_layers=1), r"does not use 9 of its weights"),
    "other sizes": ("llama", {}, settings("config.json", intermediate_size=40), r"finds in other shapes than config"),
    "tied weights twice": (
        "qwen2", {},
        tensors(WEIGHTS, lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"].clone()})),
        r"finds beside the ones that they are tied to 1 of its weights \(first: lm_head.weight\)",
    ),
    "tied weights apart": (
        "qwen2", {},
        tensors(WEIGHTS, lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"] + 1})),
        r"finds beside the ones that they are tied to 1 of its weights \(first: lm_head.weight\)",
    ),
    "one number": (
        "llama", {}, tensors(WEIGHTS, lambda found: found["model.norm.weight"][3].add_(1e-3)),
        r"reads other numbers in model.norm.weight",
    ),
    "a coarser dtype": (
        "llama", {}, settings("config.json", dtype="bfloat16"), r"reads .* as torch.bfloat16 instead of torch.float32",
    ),
    "other positions": (
        "llama", {}, settings("config.json", rope_parameters={"rope_type": "default", "rope_theta": 3.0}),
        r"AutoModelForCausalLM computes log-probs off by",
    ),
    "another activation": (
        "llama", {}, settings("config.json", hidden_act="relu"), r"AutoModelForCausalLM computes log-probs off by",
    ),
    "a model of another kind": (
        "llama", {}, settings("config.json", model_type="no such"), r"AutoModelForCausalLM cannot load it \(",
    ),
    "generation that is not taken": (
        "llama", {}, settings("generation_config.json", early_stopping=[]),
        r"GenerationConfig cannot load generation_config.json \(TypeError: unhashable type: 'list'\)",
    ),
    "generation of other settings": (
        "llama", {}, settings("generation_config.json", temperature=0.25),
        r"GenerationConfig reads temperature as 0.25 instead of None",
    ),
    "no generation": (
        "llama", {}, lambda folder: (folder / "generation_config.json").unlink(),
        r"GenerationConfig cannot load generation_config.json \(OSError",
    ),
    "an adapter of other layers": (
        "llama", {"lora": Lora()}, settings("adapter/adapter_config.json", target_modules=["q_proj"]),
        r"PeftModel misses or does not use \d+ weights of the adapter \(first: base_model.*down_proj",
    ),
    "an adapter of no layer": (
        "llama", {"lora": Lora()}, settings("adapter/adapter_config.json", target_modules=["Wqkv"]),
        r"PeftModel cannot load adapter/ \(NoMatching\w+: Target modules .*Wqkv",
    ),
    "an adapter of another rank": (
        "llama", {"lora": Lora()}, settings("adapter/adapter_config.json", r=2), r"PeftModel cannot load adapter/ \(R",
    ),
    "an adapter of another scale": (
        "llama", {"lora": Lora()}, settings("adapter/adapter_config.json", lora_alpha=64),
        r"PeftModel computes log-probs off by",
    ),
    "an adapter of other names": (
        "llama", {"lora": Lora()},
        tensors(ADAPTER, lambda found: found.update({"other": found.pop(ATTENTION)})),
        r"PeftModel misses or does not use 2 weights of the adapter \(first: base_model.*q_proj",
    ),
    "an adapter without weights": (
        "llama", {"lora": Lora()}, lambda folder: (folder / ADAPTER).unlink(),
        r"PeftModel finds no adapter_model.safetensors",
    ),
    "a score of another head": (
        "reward", {}, tensors(WEIGHTS, lambda found: found.pop("score.weight")),
        r"AutoModelForSequenceClassification misses 1 of its weights \(first: score.weight\)",
    ),
    "a reward model of other positions": (
        "reward", {}, settings("config.json", rope_parameters={"rope_type": "default", "rope_theta": 3.0}),
        r"AutoModelForSequenceClassification computes a score off by",
    ),
    "a score read elsewhere": (
        "reward", {}, settings("config.json", pad_token_id=8), r"SequenceClassification computes a score off by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_folder_is_seen(kind: str, tmp_path: Path) -> None:
    name, options, alter, expected = ALTERED[kind]
    model: PackedModel = reward_model("llama") if name == "reward" else packed_model(name, **options)
    folder = save_policy(model, tmp_path / "policy", documents=DOCUMENTS)
    assert difference(model, folder) is None
    alter(folder)
    assert re.search(expected, difference(model, folder) or ""), difference(model, folder)


LARGE = ("a tensor dropped", "a tensor more", "fewer layers", "other sizes", "tied weights twice", "a coarser dtype")
LARGE += ("generation that is not taken", "an adapter of other layers", "an adapter of no layer")


@pytest.mark.parametrize("kind", LARGE)
def test_of_a_large_model_no_number_is_read_and_names_are_compared(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_back, "MOST_BYTES", 0)
    monkeypatch.setattr(read_back, "_outputs", None)
    test_an_altered_folder_is_seen(kind, tmp_path)


def test_what_was_written_stays_and_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_save", {"model.norm.weight"})
    model = packed_model("llama")
    with pytest.raises(ArtifactError, match=r"policy has the model's weights, but AutoModelForCausalLM misses 1 of"):
        save_policy(model, tmp_path / "policy")
    monkeypatch.undo()
    assert len(load_file(tmp_path / "policy" / WEIGHTS)) == len(model.causal.state_dict()) - 1


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "lora": Lora()}, {"head": "reward"}])
def test_saving_is_rehearsed_with_every_architecture(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYPREFOPT_CACHE", str(tmp_path / "cache"))
    config = write_config(tmp_path / "model", ARCHITECTURES[name])
    rehearse_saving(config, **options)
    assert any("saving" in file.read_text() for file in (tmp_path / "cache").rglob("*.json"))  # and it was not left out
    monkeypatch.setattr(read_back, "find_difference", None)
    rehearse_saving(config, **options)  # known from the first time


def test_saving_in_4_bits_is_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("PYPREFOPT_CACHE", str(tmp_path / "cache"))
    config = write_config(tmp_path / "model", ARCHITECTURES["llama"])
    rehearse_saving(config, lora=Lora(), load_in_4bit=True)
    assert any("'load_in_4bit': True" in file.read_text() for file in (tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("head", ["language", "reward"])
def test_a_rehearsal_that_fails_is_an_error(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForSequenceClassification

    monkeypatch.setenv("PYPREFOPT_CACHE", str(tmp_path / "cache"))
    config = write_config(tmp_path / "model", ARCHITECTURES["llama"])
    kind: Any = LlamaForCausalLM if head == "language" else LlamaForSequenceClassification
    monkeypatch.setattr(kind, "_keys_to_ignore_on_save", {"model.norm.weight"})
    name = "AutoModelForCausalLM" if head == "language" else "AutoModelForSequenceClassification"
    with pytest.raises(ConfigError, match=rf"^a model like .* would be saved, but {name} misses 1 of its .*; use"):
        rehearse_saving(config, head=head)
    assert not any("saving" in file.read_text() for file in (tmp_path / "cache").rglob("*.json"))


def test_generation_settings_that_contradict_each_other_come_back(tmp_path: Path) -> None:
    write_config(tmp_path / "config", ARCHITECTURES["llama"])
    start = save_policy(load_model(tmp_path / "config" / "config.json"), tmp_path / "start")
    settings("generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)(start)
    saved = save_policy(load_model(start), tmp_path / "policy")
    assert AutoModelForCausalLM.from_pretrained(saved).generation_config.temperature == 0.6
