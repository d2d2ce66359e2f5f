from __future__ import annotations

import json
import logging
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, RewardModel, estimate_memory, load_model, model_hash, save_policy, toy_config
from pyprefopt.modeling.attention.packed import ATTENTION_NAME
from pyprefopt.modeling.checkpoints.load import sketch_model
from tests.modeling.attention.test_layouts import OTHERS
from tests.modeling.models import ARCHITECTURES, make_groups, write_config
from tests.reference.packing import pack_groups


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config", toy_config(300))


@pytest.fixture
def saved(config: Path, tmp_path: Path) -> Path:
    return save_policy(load_model(config), tmp_path / "saved")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a local path must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.usefixtures("no_network")
def test_a_config_gives_seeded_random_weights_and_says_so(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(1)
        first = load_model(config, seed=3)
    assert "weights are random (seed 3)" in caplog.text
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = load_model(config, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert same_weights(first, second)
    assert not same_weights(first, load_model(config, seed=4))
    half = load_model(config, seed=3, dtype="bfloat16")
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(first.parameters(), half.parameters(), strict=True))


@pytest.mark.usefixtures("no_network")
def test_a_directory_is_loaded_as_it_is(saved: Path, config: Path) -> None:
    torch.manual_seed(2)
    before = torch.get_rng_state()
    model = load_model(saved)
    assert torch.equal(before, torch.get_rng_state())
    assert same_weights(model, load_model(config))
    assert model.training
    assert model.config._attn_implementation == ATTENTION_NAME
    assert model.config.use_cache is False
    assert load_model(saved, dtype="bfloat16").dtype == torch.bfloat16


def test_the_embedded_model_has_a_name(config: Path) -> None:
    """Its vocabulary is as large as the tokenizer's; its weights are those of its config.json."""
    named, written = load_model("embedded:tiny", seed=3, vocab_size=300), load_model(config, seed=3)
    assert named.config.vocab_size == named.source_config.vocab_size == 300
    for name, weight in written.state_dict().items():
        assert torch.equal(named.state_dict()[name], weight)
    assert load_model("embedded:tiny").config.vocab_size == 420


def test_no_layer_is_left_out(tmp_path: Path) -> None:
    config = {
        "model_type": "opt", "vocab_size": 300, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 128, "word_embed_proj_dim": 32, "layerdrop": 0.5,
    }  # fmt: skip
    model = LogpsModel(load_model(write_config(tmp_path, config))).train()
    batch = pack_groups(make_groups()).to()
    first = model(batch)
    assert all(torch.equal(model(batch), first) for _ in range(5))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dropout_is_off_but_the_source_keeps_its_own(name: str, tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path, ARCHITECTURES[name]))
    assert model.config.attention_dropout == 0
    assert model.source_config.attention_dropout == 0.1
    assert all(m.p == 0 for m in model.modules() if isinstance(m, nn.Dropout))
    assert not any(getattr(m, "attention_dropout", 0) for m in model.modules())


@pytest.mark.parametrize("setting", ["output_router_logits", "output_hidden_states"])
def test_outputs_that_nothing_reads_are_off(setting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, setting: True}
    config = write_config(tmp_path, {**ARCHITECTURES["llama"], **experts, "return_dict": False})
    with caplog.at_level(logging.INFO):
        model = load_model(config)
    assert f"mixtral: {setting} set false in training" in caplog.text
    sketch_model(config)
    batch = pack_groups(make_groups()).to()
    off = write_config(tmp_path / "off", {**ARCHITECTURES["llama"], **experts, setting: False})
    assert torch.equal(LogpsModel(model)(batch), LogpsModel(load_model(off))(batch))
    assert getattr(model.source_config, setting) is True
    saved = json.loads((save_policy(model, tmp_path / "policy") / "config.json").read_text())
    if setting == "output_router_logits":  # transformers leaves the other out
        assert saved[setting] is True


# What a generation_config.json may hold -> whether transformers takes it.
GENERATION = {
    '{"do_sample": false, "temperature": 0.7}': True,
    '{"num_beams": "x"}': True,
    '{"max_new_tokens": -1}': False,
    '{"early_stopping": 5}': False,
    '{"num_return_sequences": 5, "num_beams": 1}': False,
    '{"cache_implementation": "evil"}': False,
    '{"watermarking_config": {"a": 1}}': False,
    '{"max_new_tokens": "a"}': False,
    "[1]": False,
    "{": False,  # it goes on without one, and says nothing
    "[" * 100_000: False,
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("text", GENERATION, ids=lambda text: text[:40])
def test_settings_of_generation_that_transformers_refuses(
    text: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out, and said; those that it takes, however odd, are kept as they are."""
    (saved / "generation_config.json").write_text(text)
    sketch_model(saved)
    with caplog.at_level(logging.WARNING):
        model = load_model(saved)
    assert ("generation_config.json is not used, and not saved with the policy" in caplog.text) != GENERATION[text]
    model.generation_config.eos_token_id = 5  # as a run does that gives a model the tokenizer's end
    policy = save_policy(model, tmp_path / "policy")
    again = AutoModelForCausalLM.from_pretrained(policy)
    assert again.generation_config.eos_token_id == 5
    if text[:2] == '{"' and GENERATION[text]:
        assert json.loads(text).items() <= json.loads((policy / "generation_config.json").read_text()).items()
    assert model.generation_config.eos_token_id == 5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rotary_frequencies_stay_in_float32(name: str, tmp_path: Path) -> None:
    full, half = (
        load_model(write_config(tmp_path, ARCHITECTURES[name]), dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    cast = LogpsModel(full).bfloat16().model  # as an engine may do
    read = load_model(save_policy(half, tmp_path / "saved"), dtype="bfloat16")
    expected = load_model(write_config(tmp_path, ARCHITECTURES[name])).base_model.rotary_emb.inv_freq
    for model in (half, cast, read):
        assert model.dtype == torch.bfloat16
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert torch.equal(model.base_model.rotary_emb.inv_freq, expected)


def test_two_models_of_one_file_do_not_share_a_config(config: Path) -> None:
    first, second = load_model(config), load_model(config)
    second.config._attn_implementation = "eager"
    assert first.config._attn_implementation == ATTENTION_NAME


def test_the_hash_counts_content_only(saved: Path, config: Path, tmp_path: Path) -> None:
    expected = model_hash(saved)
    copy = shutil.copytree(saved, tmp_path / "elsewhere")
    for name in ("tokenizer.json", "modeling_own.py"):
        (copy / name).write_text("{}")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"transformers_version": "5.0.0"}))
    assert model_hash(copy) == expected
    assert model_hash(copy, trust_remote_code=True) != expected
    (copy / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    changed_config = model_hash(copy)
    (copy / "config.json").write_text(json.dumps(settings))
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert len({expected, changed_config, model_hash(copy), model_hash(config)}) == 4


def test_more_ids_than_embeddings(config: Path) -> None:
    load_model(config, vocab_size=300)
    with pytest.raises(ConfigError, match=r"must not have more ids than the model has embeddings \(300, .*got 301"):
        load_model(config, vocab_size=301)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./missing", "model must exist, got './missing'"),
        ("a/b/c", "model must exist, got 'a/b/c'"),
        ("missing.json", "model must exist, got 'missing.json'"),
        ("", "a directory with a config.json|model must exist"),
    ],
)
def test_missing_paths_are_not_looked_up(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(source)


def test_a_hub_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"reached on the hub, got 'nobody/nothing': LocalEntryNotFoundError; download"
    ):
        load_model("nobody/nothing")


def test_directories_that_are_not_whole_models(saved: Path) -> None:
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a LoRA adapter; merge it"):
        load_model(saved)
    (saved / "adapter_config.json").unlink()
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"weights as \*.safetensors \(nothing else is opened\)"):
        load_model(saved)
    (saved / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"directory with a config.json"):
        load_model(saved)


def test_missing_weights_are_not_made_up(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError,
        match=r"LlamaForCausalLM: 1 are missing \(first: model.layers.1.mlp.up_proj.weight",
    ):
        load_model(saved)


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "half"])
def test_other_dtypes_are_refused(config: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match="dtype must be one of float32, bfloat16, float64"):
        load_model(config, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "must be a decoder"),
        ({"model_type": "lama"}, "model_type must be one that transformers knows, got 'lama'; did you mean 'llama'"),
        ({"model_type": None}, "model_type must be one that transformers knows, got None"),
        ({"model_type": "vit"}, "must be a causal language model"),
    ],
)
def test_configs_of_other_models(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(write_config(tmp_path, {**ARCHITECTURES["llama"], **changes}))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
def test_what_can_be_loaded_can_be_sketched(name: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, (ARCHITECTURES | OTHERS)[name])
    state = torch.get_rng_state()
    model = LogpsModel(sketch_model(config), probe=False)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)
    names = {path: tuple(p.shape) for path, p in LogpsModel(load_model(config)).named_parameters()}
    assert {path: tuple(p.shape) for path, p in model.named_parameters()} == names


def test_a_reward_model_is_sketched_too(config: Path) -> None:
    model = RewardModel(sketch_model(config, head="reward"), probe=False)
    assert model.causal.score.weight.device.type == "meta"


def test_code_in_a_repository_does_not_run_unasked(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise AssertionError('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = write_config(tmp_path, {"model_type": "evil", "auto_map": auto_map})
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load_model(config)


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="must be JSON, got an error"):
        load_model(tmp_path / "config.json")


def test_memory_estimate(config: Path) -> None:
    model = load_model(config)
    count = sum(p.numel() for p in model.parameters())
    full = estimate_memory(model, tokens=1000)
    assert (full.parameters, full.gradients, full.optimizer) == (4 * count, 4 * count, 8 * count)
    assert full.total == full.parameters + full.gradients + full.optimizer + full.activations
    half = estimate_memory(load_model(config, dtype="bfloat16"), tokens=1000)
    assert (half.parameters, half.gradients, half.optimizer) == (2 * count, 2 * count, 12 * count)
    assert estimate_memory(model, tokens=1000, gradient_checkpointing=True).activations < full.activations
    assert estimate_memory(model, tokens=2000).activations == 2 * full.activations


def test_a_quantized_checkpoint_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config = write_config(tmp_path, {**toy_config(300), **quantized})
    with pytest.raises(
        ConfigError, match=r"is quantized \(bitsandbytes\); give the model's own checkpoint, .*lora.load_in_4bit"
    ):
        load_model(config)
