from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyprefopt import configure, train
from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, RewardModel, load_model, save_policy
from pyprefopt.modeling.packed_model import is_unpacked
from tests.modeling.models import (
    ARCHITECTURES,
    LAYOUTS,
    make_groups,
    packed_model,
    shake,
    write_config,
)
from tests.modeling.test_logps import Lora
from tests.modeling.test_rotary import FOLLOWING
from tests.pipeline.runs import losses, write_inputs
from tests.reference.packing import Group, Response, pack_groups

HYBRID: dict[str, Any] = {
    "model_type": "qwen3_next", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"], "max_position_embeddings": 256,
}  # fmt: skip


def gradients(model: LogpsModel, logps: Tensor) -> list[Tensor]:
    """Of a sum that treats no token as another."""
    weights = torch.linspace(-1, 2, len(logps), dtype=logps.dtype)
    return list(torch.autograd.grad((weights * logps).sum(), [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_and_gradients_are_those_of_packed_attention(name: str, layout: str) -> None:
    packed, model = (packed_model(name, dtype="float64", attention=way) for way in ("loop", "unpacked"))
    assert is_unpacked(model.causal)
    batch = pack_groups(make_groups(), layout).to()
    theirs, ours = packed(batch), model(batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # soft caps and norms are float32
    for own, other in zip(gradients(model, ours), gradients(packed, theirs), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)  # norms compute in float32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lora", [None, Lora()])
def test_recomputed_activations_and_adapters_change_nothing(layout: str, lora: Lora | None) -> None:
    options = {"dtype": "float64", "attention": "unpacked", "lora": lora}
    plain, model = (packed_model("llama", gradient_checkpointing=recompute, **options) for recompute in (False, True))
    batch = pack_groups(make_groups(), layout).to()
    for own, other in zip(gradients(model, model(batch)), gradients(plain, plain(batch)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


def test_documents_stand_in_any_order() -> None:
    model, groups = packed_model("gemma2", dtype="float64", attention="unpacked"), make_groups()
    for layout in LAYOUTS:
        one = model(pack_groups(groups, layout).to())
        other = model(pack_groups(groups[::-1], layout).to())
        torch.testing.assert_close(one.sort().values, other.sort().values, rtol=0, atol=1e-12)


def test_at_most_a_quarter_of_a_call_is_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = packed_model("llama", attention="unpacked"), []
    forward = model.causal.base_model.forward
    monkeypatch.setattr(
        model.causal.base_model,
        "forward",
        lambda **options: (calls.append(options["input_ids"]), forward(**options))[1],
    )
    lengths = [1, 2, 3, 50, 49, 40, 38, 37, 20, 100]  # the last token of a document is read by none
    batch = pack_groups([Group([5], [Response(list(range(1, n + 1)), kind="response")]) for n in lengths]).to()
    model(batch)
    given = sum(ids.numel() for ids in calls)
    assert len(batch.input_ids) <= given <= len(batch.input_ids) / 0.75
    assert [len(ids) for ids in calls] == [1, 4, 1, 1, 1, 1, 1]


def test_a_reward_model_reads_the_last_token(tmp_path: Path) -> None:
    config = write_config(tmp_path, ARCHITECTURES["mistral"])
    models = [load_model(config, head="reward", attention=way) for way in ("loop", "unpacked")]
    for model in models:
        shake(model)
    batch = pack_groups(make_groups(), last_token=True).to()
    packed, own = (RewardModel(model)(batch).scores for model in models)
    torch.testing.assert_close(own, packed, rtol=0, atol=1e-5)


def test_a_prompt_whose_positions_follow_its_response_is_not_shared(tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path, FOLLOWING["longrope"][0]), attention="unpacked")
    shake(model)
    groups = [Group(list(range(1, 11)), [Response(list(range(2, n + 2)), kind="response") for n in (12, 90)])]
    with pytest.raises(ConfigError, match="layout must be separate for documents of more than 64 tokens"):
        LogpsModel(model)(pack_groups(groups, "shared", last_token=True).to())


@pytest.mark.parametrize("method", ["dpo", "sepo", "reward"])
def test_a_model_with_linear_attention_is_trained_and_saved(method: str, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    model = load_model(write_config(tmp_path, HYBRID))
    assert is_unpacked(model)
    save_policy(model, tmp_path / "model", (tmp_path / "tokenizer").iterdir())
    config = configure(
        method=method, model=str(tmp_path / "model"), data=str(tmp_path / "train.parquet"), threads=1, max_tokens=128,
        output_dir=str(tmp_path / "run"), learning_rate=1e-12, global_batch_size=8, max_steps=2, max_prompt_tokens=32,
    )  # fmt: skip
    train(config)
    first = [loss for stage, step, loss in losses(tmp_path / "run") if stage == "policy" and step == 1]
    if method == "dpo":
        assert first == pytest.approx([math.log(2)], abs=1e-6)
    assert is_unpacked(load_model(tmp_path / "run" / "policy", head="reward" if method == "reward" else "language"))
