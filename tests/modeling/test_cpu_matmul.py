"""Products through oneDNN against PyTorch's own, in value and gradient, and where they are used."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyprefopt.modeling import LogpsModel, cpu_matmul, load_model
from pyprefopt.modeling.cpu_matmul import FastLinear, product, use_fast_products
from tests.modeling.models import eager_twin, make_groups, packed_model, plain_logps, shake, write_config
from tests.reference.packing import pack_groups

needs_onednn = pytest.mark.skipif(not cpu_matmul._available(), reason="needs MKL, oneDNN and AVX-512")


def pair(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias, dtype=dtype)
    fast = copy.deepcopy(plain)
    use_fast_products(fast)
    assert type(fast) is FastLinear
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (1, 13, 24), (2, 3, 5, 24), (0, 24)])
def test_values_and_gradients(bias, shape):
    plain, fast = pair(bias)
    inputs = torch.randn(shape)
    weights = torch.randn(*shape[:-1], 40)
    found = []
    for layer in (plain, fast):
        x = inputs.clone().requires_grad_()
        out = layer(x)
        (out * weights).sum().backward()
        found.append([out.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for one, two in zip(*found, strict=True):
        assert one.shape == two.shape
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_views(transposed):
    torch.manual_seed(1)
    left, right = torch.randn(9, 33), torch.randn(33, 17)
    left = left.T.contiguous().T if transposed[0] else left
    right = right.T.contiguous().T if transposed[1] else right
    torch.testing.assert_close(product(left, right), left @ right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(left[2:5], right[:, 3:9]), left[2:5] @ right[:, 3:9], rtol=1e-5, atol=1e-5)


@needs_onednn
def test_it_is_used_where_it_can_be(monkeypatch):
    calls: list[torch.dtype] = []
    real = cpu_matmul._linear
    monkeypatch.setattr(cpu_matmul, "_linear", lambda x, w, b: (calls.append(x.dtype), real(x, w, b))[1])
    _, fast = pair(bias=False)
    fast(torch.randn(3, 24, requires_grad=True)).sum().backward()
    assert calls == [torch.float32] * 3
    for dtype in (torch.float64, torch.bfloat16):
        pair(bias=False, dtype=dtype)[1](torch.randn(3, 24, dtype=dtype)).sum().backward()
    assert len(calls) == 3


def test_frozen_weights_get_no_gradient():
    _, fast = pair(bias=True)
    fast.weight.requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    fast(x).sum().backward()
    assert fast.weight.grad is None
    assert x.grad is not None
    torch.testing.assert_close(fast.bias.grad, torch.full((40,), 3.0))


def test_what_they_give_may_be_changed_in_place():
    """As PyTorch's own products; where a weight is frozen, its inputs too."""
    for frozen in (False, True):
        found = []
        for layer in pair(bias=True):
            layer.weight.requires_grad_(not frozen)
            x = torch.linspace(-1, 1, 240).view(2, 5, 24).requires_grad_()
            inputs = x * 2
            out = layer(inputs)
            out[0] *= 3
            out.mul_(2)
            if frozen and type(layer) is FastLinear:
                inputs.mul_(5)
            out.square().sum().backward()
            found.append([x.grad, layer.bias.grad, *([] if frozen else [layer.weight.grad])])
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_products_themselves_are_no_views():
    """Called without the switch of a layer: what autograd must let be changed."""
    x, weight = torch.randn(6, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    out = cpu_matmul._Linear.apply(x, weight, None)
    assert not out._is_view()
    out.mul_(2).sum().backward()
    torch.testing.assert_close(x.grad, 2 * weight.sum(0).expand(6, -1), rtol=1e-5, atol=1e-5)


def test_a_model_that_changes_its_products_in_place_is_trained(tmp_path):
    settings = {
        "model_type": "gemma3n_text", "vocab_size": 300, "vocab_size_per_layer_input": 300, "hidden_size": 32,
        "hidden_size_per_layer_input": 8, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "num_kv_shared_layers": 0, "laurel_rank": 4, "sliding_window": 8,
        "activation_sparsity_pattern": [0.0] * 5,
    }  # fmt: skip
    model = load_model(write_config(tmp_path, settings))
    shake(model, scale=0.02)
    engine = LogpsModel(model)
    logps = engine(pack_groups(make_groups()).to())
    logps.sum().backward()
    assert (logps - plain_logps(eager_twin(model), make_groups())).abs().max() < 2e-5
    assert all(p.grad is not None for p in model.base_model.layers.parameters())


def test_a_loaded_model_has_them_below_its_head():
    causal = packed_model("llama").causal
    kinds = {type(module) for module in causal.base_model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {FastLinear}
    assert type(causal.get_output_embeddings()) is nn.Linear  # walked in blocks, not called
    assert copy.deepcopy(causal).state_dict().keys() == causal.state_dict().keys()
