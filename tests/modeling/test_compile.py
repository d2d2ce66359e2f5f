"""Compiled blocks compute what they computed before, for packs of any size, and are found where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import pyprefopt
from pyprefopt.errors import ConfigError
from pyprefopt.modeling.compile import compile_layers
from pyprefopt.settings.config import LoraConfig
from tests.modeling.models import make_groups, packed_model
from tests.pipeline.runs import losses, small, write_inputs
from tests.reference.packing import pack_groups

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")


@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {}), ("llama", {"gradient_checkpointing": True}), ("llama", {"lora": LoraConfig(r=2)})],
)
def test_value_and_gradient_as_without(name, options):
    plain, model = (packed_model(name, dtype="float64", **options) for _ in range(2))
    names = [key for key, _ in model.named_parameters()]
    assert compile_layers(model) == 2 * 3  # two layers: two norms and a feed-forward block each
    assert [key for key, _ in model.named_parameters()] == names
    for module in (plain, model):
        module.train()
    compiled = []
    for seed, count in ((0, 4), (1, 2), (2, 3)):
        batch = pack_groups(make_groups(seed)[:count]).to()
        ours, theirs = model(batch), plain(batch)
        assert (ours - theirs).abs().max() < 1e-5  # of up to 20 nats; norms compute in float32
        gradients = [
            torch.autograd.grad(logps.sum(), [p for p in module.parameters() if p.requires_grad])
            for module, logps in ((model, ours), (plain, theirs))
        ]
        for our, their in zip(*gradients, strict=True):
            assert (our - their).norm() < 1e-5 * their.norm().clamp(min=1e-3)
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[0] > 0
    assert compiled[1:] == compiled[:1] * 2  # other sizes of a pack are not compiled again


def test_a_model_without_layers_is_refused():
    model = packed_model("llama")
    model.causal.base_model.layers = None
    with pytest.raises(ConfigError, match="compile must be off for LlamaForCausalLM, whose layers are not found"):
        compile_layers(model)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_a_whole_run_as_without(tmp_path: Path, stage: int) -> None:
    write_inputs(tmp_path)
    given = {"method": "dpo", "base": {}, "oracle": {}, "policy_init": "model", "max_steps": 3, "zero_stage": stage}
    for compile_ in ("off", "on"):
        pyprefopt.train(small(tmp_path, tmp_path / compile_, **given, compile=compile_))
    ours, theirs = losses(tmp_path / "on"), losses(tmp_path / "off")
    assert [loss for *_, loss in ours] == pytest.approx([loss for *_, loss in theirs], abs=1e-5)
