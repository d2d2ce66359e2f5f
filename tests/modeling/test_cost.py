"""Counted operations against PyTorch's own counter on the plain model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pyprefopt.modeling import LogpsModel, load_model
from pyprefopt.modeling.cost import count_flops
from pyprefopt.modeling.reference import ReferencedModel
from pyprefopt.settings.config import LoraConfig
from tests.modeling.models import eager_twin, packed_model
from tests.training.toy import ToyModel

T = 24


def counted(model: torch.nn.Module, trained: bool = True) -> float:
    """Operations of forward and backward on one document of T tokens; eager attention computes all T x T scores."""
    tokens = torch.arange(T)[None]
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=tokens, use_cache=False).logits
        if trained:
            logits.sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_as_the_counter_of_torch(name):
    model = packed_model(name)
    assert count_flops(model).total(T, T * T, T) == counted(eager_twin(model.causal))


def test_a_reference_beside_adds_its_forward():
    model = packed_model("llama")
    alone, both = count_flops(model), count_flops(ReferencedModel(packed_model("llama").model, packed_model("llama")))
    forward = counted(eager_twin(model.causal), trained=False)
    assert both.total(T, T * T, T) == pytest.approx(alone.total(T, T * T, T) + forward)


def test_below_lora_no_weight_gradient_is_counted():
    whole, low = count_flops(packed_model("llama")), count_flops(packed_model("llama", lora=LoraConfig(r=2)))
    adapters = sum(2 * (n + m) for n, m in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]) * 2
    assert low.token == pytest.approx(whole.token * 4 / 6 + 6 * adapters)
    assert low.scored == whole.scored * 4 / 6
    assert low.context == whole.context


def test_a_model_without_attention_has_no_context(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32}')
    flops = count_flops(LogpsModel(load_model(file)))
    assert flops.context == 0
    assert flops.token > 0


def test_windows_are_left_out_and_other_models_refused():
    assert count_flops(packed_model("mistral")).context == 0
    assert count_flops(ToyModel()) == "ToyModel is no transformers model"
