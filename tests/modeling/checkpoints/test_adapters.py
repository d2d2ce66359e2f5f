"""Which layers get adapters where none are named, found by looking at the model."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model, save_policy
from pyprefopt.modeling.checkpoints.adapters import add_lora
from pyprefopt.modeling.checkpoints.load import sketch_model
from tests.modeling.models import _GROUPED, VOCAB, eager_twin, make_groups, plain_logps, shake, write_config
from tests.reference.packing import pack_groups

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Models whose experts are bare weights in three dimensions, and whose router is a linear layer that does more.
EXPERTS: dict[str, dict[str, Any]] = {
    "phimoe": {**_GROUPED, **_EXPERTS, "model_type": "phimoe"},
    "mixtral": {**_GROUPED, **_EXPERTS, "model_type": "mixtral"},
    "qwen3_moe": {
        **_GROUPED, "model_type": "qwen3_moe", "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}  # fmt: skip


def lora(*targets: str) -> Any:
    return SimpleNamespace(r=4, alpha=8, dropout=0.0, target_modules=targets)


@pytest.mark.parametrize("name", EXPERTS)
def test_default_targets_of_a_mixture_of_experts(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write_config(tmp_path, EXPERTS[name])
    add_lora(sketch_model(config), lora())
    with caplog.at_level(logging.WARNING):
        model = load_model(config, lora=lora())
    assert "adapters on k_proj, o_proj, q_proj, v_proj; down_proj, gate_up_proj stay as they are" in caplog.text
    assert {target.rsplit(".", 1)[-1] for target in model.peft_config["default"].target_modules} == _ATTENTION
    shake(model)
    engine = LogpsModel(model)
    logps = engine(pack_groups(make_groups()).to())
    logps.sum().backward()
    merged = load_model(save_policy(model, tmp_path / "policy"))
    assert (logps - plain_logps(eager_twin(merged), make_groups())).abs().max() < 2e-5
    named = load_model(config, lora=lora(*sorted(_ATTENTION)))
    assert {n for n, p in named.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_default_targets_are_every_plain_linear_layer_but_the_head(tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path, {**_GROUPED, "model_type": "llama"}), lora=lora())
    adapted = {n.rsplit(".", 1)[-1] for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert adapted == _ATTENTION | {"gate_proj", "up_proj", "down_proj"}


def test_layers_of_a_class_of_their_own_that_are_linear(tmp_path: Path) -> None:
    config = {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": VOCAB,
    }
    model = load_model(write_config(tmp_path, config), lora=lora())
    adapted = {n.rsplit(".", 1)[-1] for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert adapted == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    shake(model)
    groups = make_groups()
    logps = LogpsModel(model)(pack_groups(groups, layout="separate").to())
    merged = load_model(save_policy(model, tmp_path / "policy"))
    assert (logps - LogpsModel(merged)(pack_groups(groups, layout="separate").to())).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ("gate_up_proj",),
            r"no layer, but only a bare weight, 'gate_up_proj'.*linear layers are k_proj, o_proj",
        ),
        (("experts",), r"Experts.*; name linear layers, of which this model has k_proj, o_proj, q_proj, v_proj"),
        (("router",), r"must be linear layers.*, got model\.layers\.0\.mlp\.router \(PhimoeTopKRouter\)"),
        (("q_prj",), r"the model has no layer 'q_prj'; did you mean 'q_proj'\?; its linear layers are k_proj, o_proj"),
        (("embed_tokens",), r"linear layers"),
    ],
)
def test_targets_that_are_no_linear_layers_are_refused(targets: tuple[str, ...], message: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, EXPERTS["phimoe"])
    for model in (load_model(config), sketch_model(config)):
        with pytest.raises(ConfigError, match=rf"lora\.target_modules.*{message}"):
            add_lora(model, lora(*targets))


def test_frozen_layers_keep_no_inputs(tmp_path: Path) -> None:
    """An adapter's model keeps what an adapter reads, not the inputs of every frozen matrix once more."""
    model = load_model(write_config(tmp_path, {**_GROUPED, "model_type": "llama"}), lora=lora("q_proj"))
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        model.get_base_model().model.layers[0].mlp.down_proj(torch.randn(1, 77, 48, requires_grad=True))
    assert (77, 48) not in kept
    assert (1, 77, 48) not in kept
