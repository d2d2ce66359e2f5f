from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model, score_logps, toy_config
from pyprefopt.modeling.attention import loop
from pyprefopt.modeling.checkpoints.adapters import merged_state_dict
from pyprefopt.modeling.head.outputs import token_outputs
from pyprefopt.modeling.head.transform import HeadTransform
from tests.modeling.models import (
    ARCHITECTURES,
    LAYOUTS,
    VOCAB,
    eager_twin,
    make_groups,
    packed_model,
    plain_logps,
    shake,
    write_config,
)
from tests.reference.packing import Group, Response, pack_groups


@dataclasses.dataclass
class Lora:
    r: int = 4
    alpha: int = 8
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weighted_gradients(model: torch.nn.Module, logps: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    weights = torch.randn(len(logps), generator=torch.Generator().manual_seed(3)).to(logps.dtype)
    (weights * logps).sum().backward()
    return gradients(model)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pack_equals_eager_runs_of_single_documents(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    monkeypatch.setattr(loop, "_QUERY_CHUNK", 7)  # several chunks a document
    model, groups = packed_model(name), make_groups()
    twin = eager_twin(model.causal)
    logps = model(pack_groups(groups, layout).to())
    expected = plain_logps(twin, groups)
    assert logps.dtype == torch.float32
    difference = (logps - expected).abs().max().item()
    assert difference < 1e-5
    ours, theirs = weighted_gradients(model.causal, logps), weighted_gradients(twin, expected)
    assert ours.keys() == theirs.keys()
    relative = max(((ours[k] - theirs[k]).norm() / theirs[k].norm()).item() for k in ours)
    assert relative < 1e-5
    record_property("max_abs_difference", difference)
    record_property("max_relative_gradient_difference", relative)
    print(f"\n{name:20} {layout:9} log-probs {difference:.1e}  gradients {relative:.1e}")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"layer_types": ["full_attention"] * 2}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"layer_types": ["full_attention"] * 2}),
    ],
)
def test_the_test_configs_are_sharp(name: str, changes: dict[str, object]) -> None:
    model, groups = packed_model(name), make_groups()
    with torch.no_grad():
        changed = plain_logps(eager_twin(model.causal, **changes), groups)
        assert (model(pack_groups(groups).to()) - changed).abs().max() > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_do_not_see_each_other_to_the_bit(name: str, layout: str) -> None:
    model, groups, others = packed_model(name), make_groups(), make_groups(seed=5)
    groups_after = [others[0], *groups[1:]]
    own = sum(len(r.scored()) for r in groups[0].responses)
    results = []
    for pack in (groups, groups_after):
        logps = model(pack_groups(pack, layout).to())
        model.zero_grad(set_to_none=True)
        logps[own:].sum().backward()
        results.append((logps.detach(), gradients(model)))
    (before, grad_before), (after, grad_after) = results
    assert not torch.equal(before[:own], after[:own])
    assert torch.equal(before[own:], after[own:])
    assert all(torch.equal(grad_before[k], grad_after[k]) for k in grad_before)


def test_siblings_in_a_shared_pack_do_not_see_each_other() -> None:
    model, groups = packed_model("mistral"), make_groups()
    before = model(pack_groups(groups).to())
    groups[2].responses[0] = Response([7, 8, 9, 10, 11], kind="response")
    after = model(pack_groups(groups).to())
    first = sum(len(r.scored()) for g in groups[:2] for r in g.responses)
    assert not torch.equal(before[first : first + 5], after[first : first + 5])
    assert torch.equal(before[first + 5 :], after[first + 5 :])


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16_stays_near_float32(name: str) -> None:
    full = packed_model(name)
    half = packed_model(name).to(torch.bfloat16)
    batch = pack_groups(make_groups()).to()
    with torch.no_grad():
        expected, logps = full(batch), half(batch)
    assert logps.dtype == torch.float32
    assert (logps - expected).abs().max() < 0.15  # bfloat16 has 8 bits; log-probs here reach about -15
    assert (logps - expected).abs().mean() < 0.03


def test_float64_is_computed_in_float64() -> None:
    model = packed_model("mistral", dtype="float64")
    batch = pack_groups(make_groups()).to()
    logps = model(batch)
    assert logps.dtype == torch.float64
    separate = model(pack_groups(make_groups(), "separate").to())
    assert (logps - separate).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_QUERY_CHUNK", 7)
    batch = pack_groups(make_groups()).to()
    plain, checkpointed = packed_model(name), packed_model(name, gradient_checkpointing=True)
    assert checkpointed.causal.is_gradient_checkpointing
    expected, logps = plain(batch), checkpointed(batch)
    assert torch.equal(logps, expected)
    a, b = weighted_gradients(plain, expected), weighted_gradients(checkpointed, logps)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ["gpt_neox", "qwen2", "gemma2", "mistral", "phi"])
def test_lora_on_every_architecture(name: str) -> None:
    model, groups = packed_model(name, lora=Lora(), gradient_checkpointing=True), make_groups()
    logps = model(pack_groups(groups).to())
    twin = eager_twin_of_lora(model)
    assert (logps - plain_logps(twin, groups)).abs().max() < 1e-5
    ours = weighted_gradients(model, logps)
    plain = packed_model(name, lora=Lora())
    theirs = weighted_gradients(plain, plain(pack_groups(groups, "separate").to()))
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert ".lora_" in key
        assert (ours[key] - gradient).norm() < 1e-5 * gradient.norm(), key


def eager_twin_of_lora(model: LogpsModel) -> torch.nn.Module:
    config = model.causal.source_config
    twin = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    twin.load_state_dict(merged_state_dict(model.model))
    return twin.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_entropy_comes_with_the_log_probs(name: str) -> None:
    model, groups = packed_model(name), make_groups()
    batch = pack_groups(groups).to()
    alone = model(batch)
    model.entropy = True
    both = model(batch)
    assert both.kl is None
    torch.testing.assert_close(both.logps, alone, rtol=0, atol=0)
    expected = plain_entropy(eager_twin(model.causal), groups)
    assert (both.entropy - expected).abs().max() < 1e-5
    ours = weighted_gradients(model.causal, both.entropy)
    twin = eager_twin(model.causal)
    theirs = weighted_gradients(twin, plain_entropy(twin, groups))
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).norm() < 1e-5 * gradient.norm(), key


def plain_entropy(model: torch.nn.Module, groups: list[Group]) -> Tensor:
    """Entropies in the pack's order, from all logits of one unpacked run a document."""
    parts = []
    for group in groups:
        for response in group.responses:
            logits = model(input_ids=torch.tensor([group.prompt + response.ids])).logits[0]
            read = [len(group.prompt) + t - 1 for t in response.scored()]
            logps = torch.log_softmax(logits[read], dim=-1)
            parts.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(parts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_head_reads_no_row_but_those_of_scored_tokens(layout: str) -> None:
    model, groups = packed_model("llama"), make_groups()
    batch = pack_groups(groups, layout).to()
    scored = sum(len(response.scored()) for group in groups for response in group.responses)
    everything = sum(len(response.ids) for group in groups for response in group.responses)
    readout = model.readout(batch)
    with HeadRows(readout.head.weight) as seen:
        logps = token_outputs(readout, batch.target_ids, entropy=True).logps
        torch.autograd.grad(logps.sum(), (readout.hidden, readout.head.weight))
    assert torch.equal(logps, model(batch))
    assert seen.rows == {scored}
    assert scored < everything < len(batch.input_ids)


class HeadRows(TorchDispatchMode):
    """Collects how many rows are multiplied with blocks of the head's weight (told by its storage)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.storage, self.rows = weight.untyped_storage().data_ptr(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in args:
            product = "mm" in str(func) or "linear" in str(func)
            if product and isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() == self.storage:
                self.rows |= {other.shape[0] for other in args if isinstance(other, Tensor) and other is not leaf}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("target_modules", [(), ("q_proj", "lm_head")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(target_modules: tuple[str, ...], checkpointing: bool) -> None:
    lora = Lora(target_modules=target_modules)
    model = packed_model("llama", lora=lora, gradient_checkpointing=checkpointing)
    logps = model(pack_groups(make_groups()).to())
    twin = AutoModelForCausalLM.from_config(model.causal.source_config, attn_implementation="eager").eval()
    twin.load_state_dict(merged_state_dict(model.model))
    assert (logps - plain_logps(twin, make_groups())).abs().max() < 1e-5
    logps.sum().backward()
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient
    assert all(".lora_" in name for name in with_gradient)
    assert any("lm_head" in name for name in with_gradient) == ("lm_head" in target_modules)


class NoLargeTensor(TorchDispatchMode):
    """Fails on any tensor of `limit` elements or more."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.largest = limit, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
                assert leaf.numel() < self.limit, f"{func} made a tensor of shape {tuple(leaf.shape)}"
        return result


@pytest.mark.parametrize("target_modules", [None, ("lm_head",)])
def test_no_logits_of_all_tokens(tmp_path: Path, target_modules: tuple[str, ...] | None) -> None:
    vocabulary = 6000
    config = {**toy_config(vocabulary), "hidden_size": 16, "intermediate_size": 16}
    lora = None if target_modules is None else Lora(r=2, target_modules=target_modules)
    model = LogpsModel(load_model(write_config(tmp_path, config), lora=lora))
    tokens = torch.randint(0, vocabulary, (4, 200), generator=torch.Generator().manual_seed(0)).tolist()
    batch = pack_groups([Group(ids[:100], [Response(ids[100:])]) for ids in tokens]).to()
    count = len(batch.target_ids)
    assert count == 400
    limit = count * vocabulary // 4
    with NoLargeTensor(limit) as mode:
        model(batch).sum().backward()
    assert mode.largest >= vocabulary * 16  # the mode saw the backward pass: the head's gradient
    with pytest.raises(AssertionError, match="made a tensor"), NoLargeTensor(limit):
        model.causal(batch.input_ids[None])


def test_score_logps_has_no_gradient_and_restores_the_mode() -> None:
    model = packed_model("llama", lora=Lora(dropout=0.5))
    batch = pack_groups(make_groups()).to()
    model.train()
    first = score_logps(model, batch)
    assert model.training
    assert not first.requires_grad
    assert torch.equal(first, score_logps(model, batch))  # evaluation mode: LoRA's dropout is off


def test_a_batch_without_scored_tokens() -> None:
    model = packed_model("llama")
    batch = pack_groups([Group([1, 2], [Response([3, 4], selected=[False, False])])]).to()
    logps = model(batch)
    assert logps.shape == (0,)
    logps.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_probe_leaves_the_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    LogpsModel(load_model(write_config(tmp_path, toy_config(VOCAB)), lora=Lora(dropout=0.3)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_on_its_way_to_a_gpu_is_probed_on_the_cpu(tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path, toy_config(VOCAB)), attention="flex")
    LogpsModel(model)
    assert model.config.packed_attention == "flex"
    with pytest.raises(ConfigError, match="got 'flex'"):
        LogpsModel(model)(pack_groups([Group([1, 2], [Response([3, 4])])]).to())


def test_the_head_computes_what_the_model_does_whatever_the_config_says() -> None:
    model = packed_model("llama").model
    model.config.final_logit_softcapping = 2.0  # Llama's forward does not read it
    assert LogpsModel(model).transform == HeadTransform()
    capped = packed_model("gemma2")
    assert capped.transform == HeadTransform(cap=3.0)
    for factor, transform in ((0.25, HeadTransform(0.25)), (4.0, HeadTransform(0.25))):  # an architecture of its own
        model.config.lm_head_multiplier = factor
        scaled = model.forward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "forward", lambda **options: _scale(scaled(**options)))  # noqa: B023
            assert LogpsModel(model).transform == transform


def _scale(output: Any) -> Any:
    output.logits = 0.25 * output.logits
    return output


def test_the_probe_finds_a_head_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model("llama").model
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **options: _scale(forward(**options)))
    with pytest.raises(ConfigError, match="LlamaForCausalLM: log-probs of a pack differ from its own logits by"):
        LogpsModel(model)


def test_the_probe_finds_weights_that_are_not_numbers() -> None:
    for bad, kind, where in ((math.nan, "NaN", "lm_head"), (-math.inf, "infinity", "model.layers.1.mlp.up_proj")):
        model = packed_model("llama").model
        with torch.no_grad():
            model.get_submodule(where).weight[0, :2] = bad
        words = rf"the weights of .*config\.json must be finite, but hold {kind}, in {where}\.weight \(2 of [\d,]+ numb"
        with pytest.raises(ConfigError, match=words):
            LogpsModel(model)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "cohere", "logit_scale": 0.25},
        {"model_type": "granite", "logits_scaling": 4.0},
    ],
    ids=lambda c: c["model_type"],
)
def test_other_heads(config: dict[str, object], tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path, {**ARCHITECTURES["llama"], **config, "num_key_value_heads": 4}))
    shake(model)
    engine, groups = LogpsModel(model), make_groups()
    with torch.no_grad():
        assert (engine(pack_groups(groups).to()) - plain_logps(eager_twin(model), groups)).abs().max() < 1e-5


def test_another_attention_is_refused() -> None:
    config = AutoConfig.for_model(**toy_config(VOCAB))
    with pytest.raises(ConfigError, match="attention implementation must be 'pyprefopt_packed', got 'sdpa'"):
        LogpsModel(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
