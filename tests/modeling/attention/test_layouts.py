"""The shared layout against the separate one: the prompt is computed once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyprefopt.modeling import LogpsModel, load_model
from tests.modeling.models import _BASE, ARCHITECTURES, make_groups, shake, write_config
from tests.modeling.test_logps import weighted_gradients
from tests.reference.packing import Group, Response, pack_groups

# Largest difference of a log-prob (nats), and of a weight's gradient relative to its norm. Architectures with RMS norms
# round to float32 inside, whatever the precision: their gradients agree to that.
BOUNDS = {"float64": (1e-11, 1e-6), "float32": (2e-5, 1e-5)}
_PLAIN = {**_BASE, "num_key_value_heads": 2}
OTHERS = {
    "qwen3": {**_PLAIN, "model_type": "qwen3", "head_dim": 8},
    "gemma3": {**_PLAIN, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {**_PLAIN, "model_type": "phi3", "pad_token_id": 0},
    "olmo2": {**_PLAIN, "model_type": "olmo2"},
    "granite": {**_PLAIN, "model_type": "granite", "attention_multiplier": 0.3},
    "cohere": {**_PLAIN, "model_type": "cohere"},
    "starcoder2": {**_PLAIN, "model_type": "starcoder2", "sliding_window": 8},
    "smollm3": {**_PLAIN, "model_type": "smollm3", "pad_token_id": 0},
    "gpt2": {"model_type": "gpt2", "vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {
        "model_type": "opt", "vocab_size": 300, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128, "word_embed_proj_dim": 32,
    },
}  # fmt: skip


def engine(directory: Path, config: dict[str, object], dtype: str = "float64") -> LogpsModel:
    model = load_model(write_config(directory, config), dtype=dtype)
    shake(model)
    return LogpsModel(model)


def compare(model: LogpsModel, groups: list[Group], dtype: str) -> None:
    """Values and gradients in both layouts."""
    shared, separate = (pack_groups(groups, layout).to() for layout in ("shared", "separate"))
    assert len(shared.input_ids) < len(separate.input_ids)
    results = []
    for batch in (shared, separate):
        logps = model(batch)
        results.append((logps.detach(), weighted_gradients(model, logps)))
    (ours, gradients), (theirs, expected) = results
    values, relative = BOUNDS[dtype]
    assert (ours - theirs).abs().max() < values
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        # A key's bias has no gradient but rounding: it moves all scores of a query alike.
        assert (gradients[name] - gradient).norm() <= relative * max(gradient.norm().item(), 1e-3), name


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_equals_separate(name: str, dtype: str, tmp_path: Path) -> None:
    compare(engine(tmp_path, ARCHITECTURES[name], dtype), make_groups(), dtype)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("responses", [1, 2, 3, 7])
def test_any_number_of_responses(name: str, responses: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(responses)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 300, (count,), generator=generator).tolist()

    groups = [Group(ids(13), [Response(ids(3 + 2 * i), kind="response") for i in range(responses)]) for _ in range(2)]
    groups.append(Group(ids(5), [Response(ids(4)), Response(ids(4))]))
    compare(engine(tmp_path, ARCHITECTURES[name]), groups, "float64")


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name: str, tmp_path: Path) -> None:
    compare(engine(tmp_path, OTHERS[name]), make_groups(), "float64")
