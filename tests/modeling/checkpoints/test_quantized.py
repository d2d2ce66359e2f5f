"""QLoRA: the engine on packed weights against transformers, PEFT and bitsandbytes alone, and what is saved of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model, save_policy, score_logps
from pyprefopt.modeling.checkpoints import quantized as module
from pyprefopt.modeling.checkpoints.quantized import QuantizedLinear
from pyprefopt.modeling.compile import compile_layers
from pyprefopt.modeling.cost import count_flops, estimate_memory
from pyprefopt.modeling.reference import ReferencedModel
from tests.modeling.models import ARCHITECTURES, LAYOUTS, VOCAB, make_groups, packed_model, plain_logps, write_config
from tests.modeling.test_logps import Lora, weighted_gradients
from tests.reference.packing import pack_groups

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the optional package bitsandbytes is absent")


def checkpoint(name: str) -> Path:
    return save_policy(packed_model(name), Path(tempfile.mkdtemp()) / name)


def quantized_model(source: Path, *, moved: bool = True, lora: Any = None, **options: Any) -> LogpsModel:
    """A QLoRA model; `moved`: its adapters are no longer the identity."""
    model = LogpsModel(load_model(source, load_in_4bit=True, lora=lora or Lora(), **options))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if moved and ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 10
    return model


def naive_twin(model: LogpsModel, source: Path) -> nn.Module:
    """The same through bitsandbytes' and PEFT's own layers, with eager attention and all logits."""
    from peft import get_peft_model

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    twin = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=nf4, dtype=torch.float32, attn_implementation="eager"
    )
    twin.enable_input_require_grads()  # without a gradient bitsandbytes computes another way
    twin = get_peft_model(twin, model.model.peft_config["default"], autocast_adapter_dtype=False)
    twin.load_state_dict({k: v for k, v in model.model.state_dict().items() if ".lora_" in k}, strict=False)
    for part in twin.modules():  # in training mode, for the same reason
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.0
    return twin.train()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_the_engine_against_the_naive_way(name: str, layout: str, record_property: pytest.RecordProperty) -> None:
    source = checkpoint(name)
    model, groups = quantized_model(source), make_groups()
    logps = model(pack_groups(groups, layout).to())
    twin = naive_twin(model, source)
    expected = plain_logps(twin, groups)
    difference = (logps - expected).abs().max().item()
    assert difference < 1e-5
    ours = weighted_gradients(model.model, logps)
    theirs = weighted_gradients(twin, expected)
    assert ours.keys() == theirs.keys()
    assert all(".lora_" in key for key in ours)
    relative = max(((ours[k] - theirs[k]).norm() / theirs[k].norm()).item() for k in ours)
    assert relative < 1e-5
    record_property("max_abs_difference", difference)
    record_property("max_relative_gradient_difference", relative)
    plain = packed_model(name)(pack_groups(groups, layout).to())
    assert (logps - plain).abs().mean() > 0.1  # quantized it is


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_saves_what_was_trained(name: str, tmp_path: Path) -> None:
    model, groups = quantized_model(checkpoint(name), gradient_checkpointing=True), make_groups()
    batch = pack_groups(groups).to()
    logps = model(batch)
    assert torch.equal(score_logps(model, batch), logps)  # evaluation computes as training does
    saved = save_policy(model, tmp_path / "policy")
    config = json.loads((saved / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    twin = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager").eval()
    assert (logps - plain_logps(twin, groups)).abs().max() < 1e-5
    again = score_logps(LogpsModel(load_model(saved)), batch)
    assert (logps - again).abs().max() < 1e-5
    assert (saved / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_in_float32_and_rounded_once(dtype: str, tmp_path: Path) -> None:
    model = quantized_model(checkpoint("llama"), dtype=dtype, lora=Lora(target_modules=("q_proj",)))
    saved = load_file(save_policy(model, tmp_path / "policy") / "model.safetensors")
    wanted = getattr(torch, dtype)
    assert all(tensor.dtype == wanted for tensor in saved.values())
    attention = model.causal.model.layers[0].self_attn
    layer, scale = attention.q_proj, 8 / 4
    base = layer.base_layer.dense()
    assert base.dtype == wanted
    delta = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    assert torch.equal(saved["model.layers.0.self_attn.q_proj.weight"], (base.float() + scale * delta).to(wanted))
    assert torch.equal(saved["model.layers.0.self_attn.k_proj.weight"], attention.k_proj.dense())  # without an adapter


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen2"])
def test_linear_layers_but_the_head_are_packed(name: str) -> None:
    model = quantized_model(checkpoint(name), dtype="bfloat16")
    packed = {path for path, part in model.causal.named_modules() if isinstance(part, QuantizedLinear)}
    plain = {path for path, part in packed_model(name).causal.named_modules() if isinstance(part, nn.Linear)}
    assert packed
    assert {path.removesuffix(".base_layer") for path in packed} == plain - {"lm_head", "embed_out"}
    assert type(model.causal.get_output_embeddings()) is nn.Linear
    for path, parameter in model.causal.named_parameters():
        owner = path.removesuffix(".weight")
        assert parameter.dtype == (torch.uint8 if owner in packed else torch.bfloat16), path
        assert parameter.requires_grad == (".lora_" in path)


def test_gradient_checkpointing_changes_no_bit() -> None:
    source, batch = checkpoint("llama"), pack_groups(make_groups()).to()
    plain, checkpointed = (quantized_model(source, gradient_checkpointing=given) for given in (False, True))
    expected, logps = plain(batch), checkpointed(batch)
    assert torch.equal(logps, expected)
    ours, theirs = weighted_gradients(checkpointed, logps), weighted_gradients(plain, expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_reference_is_the_packed_model_with_its_adapter_off() -> None:
    source, batch = checkpoint("llama"), pack_groups(make_groups()).to()
    reference = LogpsModel(load_model(source, load_in_4bit=True))
    start = quantized_model(source, moved=False)
    assert torch.equal(start(batch), reference(batch))
    first = ReferencedModel(start.model)(batch)
    assert first.kl.abs().max() < 1e-6
    policy = quantized_model(source)
    later = ReferencedModel(policy.model)(batch)
    assert torch.equal(later.logps, policy(batch))
    expected = ReferencedModel(policy.model, reference)(batch)  # a second copy beside it
    torch.testing.assert_close(later.kl, expected.kl, rtol=1e-5, atol=1e-6)
    assert later.kl.mean() > 1e-3


def test_a_state_dict_goes_there_and_back() -> None:
    source, batch = checkpoint("llama"), pack_groups(make_groups()).to()
    trained, fresh = quantized_model(source), quantized_model(source, moved=False)
    expected = trained(batch)
    assert not torch.equal(fresh(batch), expected)
    fresh.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(fresh(batch), expected)


def test_counted_as_what_it_computes_and_stores() -> None:
    source = checkpoint("llama")
    model, plain = quantized_model(source), packed_model("llama", lora=Lora())
    assert count_flops(model) == count_flops(plain)
    numbers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # of two layers' matrices
    saved = estimate_memory(plain, tokens=10).parameters - estimate_memory(model, tokens=10).parameters
    scales = numbers // 64 + 4 * -(-numbers // (64 * 256))  # a byte a block of 64, and a float32 for 256 of these
    tables = 14 * 4 * (16 + 256 + 1)  # of 14 layers
    assert saved == pytest.approx(numbers * 3.5 - scales - tables, abs=14 * 4)
    same = estimate_memory(model, tokens=10), estimate_memory(plain, tokens=10)
    assert same[0].gradients == same[1].gradients
    assert same[0].activations == same[1].activations


def test_packed_weights_that_are_none_are_named() -> None:
    model = quantized_model(checkpoint("llama")).model
    model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.quant_state.offset.fill_(float("nan"))
    with pytest.raises(
        ConfigError, match=r"hold NaN, in model\.layers\.0\.mlp\.up_proj\.base_layer\.weight \(1,536 of 1,5"
    ):
        LogpsModel(model)


def test_random_weights_and_other_precisions_are_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, ARCHITECTURES["llama"])
    with pytest.raises(ConfigError, match=r"load_in_4bit needs a model with weights .*config.json.*; give the dir"):
        load_model(config, load_in_4bit=True)
    with pytest.raises(ConfigError, match=r"load_in_4bit needs dtype float32 or bfloat16, got torch\.float64"):
        load_model(checkpoint("llama"), load_in_4bit=True, dtype="float64")


def test_layers_that_hold_their_weight_transposed_are_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="plain linear layers, got GPT2LMHeadModel, whose layers are Conv1D"):
        load_model(tmp_path, load_in_4bit=True)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint("llama")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"bitsandbytes, which is not installed; run pip install 'pyprefopt\[qlora\]'"
    ):
        load_model(source, load_in_4bit=True)
    load_model(source)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_layers_compute_the_same() -> None:
    source = checkpoint("llama")
    plain, model = quantized_model(source), quantized_model(source)
    assert compile_layers(model) == 2 * 3
    counters.clear()
    for seed, count in ((0, 4), (1, 2)):
        batch = pack_groups(make_groups(seed)[:count]).to()
        expected, logps = plain(batch), model(batch)
        assert (logps - expected).abs().max() < 5e-5  # rounding in another order
        ours, theirs = weighted_gradients(model, logps), weighted_gradients(plain, expected)
        assert all((ours[k] - theirs[k]).norm() < 1e-5 * theirs[k].norm() for k in theirs)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


def test_what_a_packed_layer_gives_may_be_changed_in_place() -> None:
    model = quantized_model(checkpoint("llama"), moved=False)
    layer = next(part for part in model.modules() if isinstance(part, QuantizedLinear))
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    inputs = 1 * x
    out = layer(inputs)
    out[0] *= 3
    inputs.mul_(2)
    (out * 2).sum().backward()
    scale = torch.tensor([6.0, 2.0])[:, None, None]
    torch.testing.assert_close(x.grad, scale * layer.dense().sum(0).expand(2, 5, -1), rtol=1e-4, atol=1e-4)
