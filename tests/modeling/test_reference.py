from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, ReferencedModel, estimate_memory, load_model, score_logps, toy_config
from pyprefopt.modeling.packed_model import run_pack
from tests.modeling.models import LAYOUTS, make_groups, packed_model, shake, write_config
from tests.modeling.test_logps import Lora, NoLargeTensor
from tests.reference.packing import Group, Response, pack_groups


def referenced(name: str, **options: object) -> ReferencedModel:
    """A policy with shaken weights, and its reference with others."""
    policy, reference = packed_model(name, **options), packed_model(name)
    shake(reference, seed=2)
    return ReferencedModel(policy.model, reference)


def plain_kl(policy: LogpsModel, reference: LogpsModel, batch: object) -> Tensor:
    """From the models' own logits, all at once."""
    own, ref = (
        torch.log_softmax(run_pack(m.causal, batch, "logits")[batch.hidden_index], -1) for m in (policy, reference)
    )
    return (ref.exp() * (ref - own)).sum(-1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2"])
def test_equals_the_models_own_logits(name: str, layout: str) -> None:
    model, twin = referenced(name), packed_model(name)
    batch = pack_groups(make_groups(), layout).to()
    logps, kl, *_ = model(batch)
    expected = plain_kl(twin, model.reference, batch)
    assert expected.min() > 1e-3  # the models differ
    torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logps, twin(batch), rtol=0, atol=1e-5)
    weights = torch.randn(2, len(kl), generator=torch.Generator().manual_seed(0))
    (weights[0] * logps + weights[1] * kl).sum().backward()
    (weights[0] * twin(batch) + weights[1] * expected).sum().backward()
    ours, theirs = ({n: p.grad for n, p in m.named_parameters()} for m in (model, twin))
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).norm() < 1e-5 * gradient.norm() + 1e-7, key
    assert all(p.grad is None for p in model.reference.parameters())


@pytest.mark.parametrize("target_modules", [(), ("q_proj", "lm_head")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_without_its_adapter_is_the_reference(target_modules: tuple[str, ...], checkpointing: bool) -> None:
    lora = Lora(target_modules=target_modules, dropout=0.1)
    policy = packed_model("llama", lora=lora, gradient_checkpointing=checkpointing).eval()  # dropout off in both
    start = packed_model("llama", lora=lora)
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()  # as before training
    batch = pack_groups(make_groups()).to()
    by_adapter = ReferencedModel(policy.model)(batch)
    grads = torch.autograd.grad(by_adapter.kl.sum(), [p for p in policy.parameters() if p.requires_grad])
    assert all(p.requires_grad == (".lora_" in name) for name, p in policy.named_parameters())
    by_copy = ReferencedModel(policy.model, start.eval())(batch)
    expected = torch.autograd.grad(by_copy.kl.sum(), [p for p in policy.parameters() if p.requires_grad])
    assert by_copy.kl.min() > 1e-3
    torch.testing.assert_close(by_adapter[:2], by_copy[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-5)


def test_the_reference_is_not_a_part_but_follows() -> None:
    model = referenced("llama")
    assert model.state_dict().keys() == packed_model("llama").state_dict().keys()
    assert not any(p.requires_grad for p in model.reference.parameters())
    model.train()
    assert not model.reference.training
    before = estimate_memory(packed_model("llama"), tokens=8).parameters
    assert estimate_memory(model, tokens=8).parameters == 2 * before
    model.to(torch.float64)
    assert next(model.reference.parameters()).dtype == torch.float64
    logps, kl, *_ = model(pack_groups(make_groups()).to())
    assert (logps.dtype, kl.dtype) == (torch.float64, torch.float64)


def test_equal_models_have_no_divergence() -> None:
    policy = packed_model("gemma2")
    outputs = ReferencedModel(policy.model, copy.deepcopy(policy))(pack_groups(make_groups()).to())
    assert torch.equal(outputs.kl, torch.zeros_like(outputs.kl))


def test_scoring_gives_the_log_probs() -> None:
    model, batch = referenced("llama"), pack_groups(make_groups()).to()
    torch.testing.assert_close(score_logps(model, batch), packed_model("llama")(batch).detach(), rtol=0, atol=1e-5)


def test_a_policy_without_adapter_needs_a_reference() -> None:
    with pytest.raises(ConfigError, match="no LoRA adapter to switch off"):
        ReferencedModel(packed_model("llama").model)


@pytest.mark.parametrize("target_modules", [None, ("lm_head",)])
def test_no_logits_of_all_tokens(tmp_path: Path, target_modules: tuple[str, ...] | None) -> None:
    vocabulary = 6000
    file = write_config(tmp_path, {**toy_config(vocabulary), "hidden_size": 16, "intermediate_size": 16})
    lora = None if target_modules is None else Lora(r=2, target_modules=target_modules)
    model = ReferencedModel(load_model(file, lora=lora), LogpsModel(load_model(file, seed=1)))
    tokens = torch.randint(0, vocabulary, (4, 200), generator=torch.Generator().manual_seed(0)).tolist()
    batch = pack_groups([Group(ids[:100], [Response(ids[100:])]) for ids in tokens]).to()
    with NoLargeTensor(len(batch.target_ids) * vocabulary // 4):
        logps, kl, *_ = model(batch)
        (logps.sum() + kl.sum()).backward()
