"""Tiny random models of every tested architecture, and the plain way to compute what the engine computes."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pyprefopt.modeling import LogpsModel, load_model
from tests.reference.packing import Group, Response

VOCAB = 300
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "attention_dropout": 0.1,  # must be switched off by load_model
}
_GROUPED = {**_BASE, "num_key_value_heads": 2}

# Windows are shorter than the documents below, soft caps small enough to matter.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED, "model_type": "llama"},
    "gpt_neox": {**_BASE, "model_type": "gpt_neox", "hidden_dropout": 0.1, "use_parallel_residual": True},
    "gpt_neox_sequential": {**_BASE, "model_type": "gpt_neox", "use_parallel_residual": False},
    "qwen2": {
        **_GROUPED,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        **_GROUPED,
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "phi": {**_BASE, "model_type": "phi", "partial_rotary_factor": 0.5, "num_key_value_heads": 4, "resid_pdrop": 0.1},
    "mistral": {**_GROUPED, "model_type": "mistral", "sliding_window": 8},
}
LAYOUTS = ("shared", "separate")


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return path


def shake(model: torch.nn.Module, seed: int = 1, scale: float = 0.2) -> None:
    """Weights far from their initial values, norms and biases too, so that no mistake hides behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))


def packed_model(name: str, **options: Any) -> LogpsModel:
    """The architecture with packed attention and shaken weights."""
    with tempfile.TemporaryDirectory() as directory:
        model = load_model(write_config(Path(directory), ARCHITECTURES[name]), **options)
    shake(model)
    return LogpsModel(model)


def eager_twin(model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
    """The same weights in a plain Hugging Face model with eager attention; `changes` go into its config."""
    config = copy.deepcopy(model.source_config)
    for key, value in changes.items():
        setattr(config, key, value)
    twin = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=model.dtype)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def plain_logps(model: PreTrainedModel, groups: list[Group]) -> Tensor:
    """Log-probs of the scored tokens from one unpacked run a document, in the pack's order."""
    parts = []
    for group in groups:
        for response in group.responses:
            document = torch.tensor([group.prompt + response.ids])
            dtype = torch.promote_types(model.dtype, torch.float32)
            logps = torch.log_softmax(model(input_ids=document, use_cache=False).logits[0].to(dtype), dim=-1)
            read = [len(group.prompt) + t - 1 for t in response.scored()]
            targets = [response.ids[t] for t in response.scored()]
            parts.append(logps[read, targets])
    return torch.cat(parts)


def make_groups(seed: int = 0, first_id: int = 0, vocab_size: int = VOCAB) -> list[Group]:
    """Documents longer and shorter than the windows, selections, a one-token response, n responses, nothing scored."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(first_id, vocab_size, (count,), generator=generator).tolist()

    every_third = [t % 3 == 2 for t in range(17)]  # neither the first nor the last token, and not in a row
    return [
        Group(ids(11), [Response(ids(17), selected=every_third), Response(ids(13), mask=[t != 4 for t in range(13)])]),
        Group(ids(3), [Response(ids(1)), Response(ids(21), kind="rejected")], row=1),
        Group(ids(12), [Response(ids(n), kind="response") for n in (5, 9, 2)], row=2),
        Group(
            ids(1), [Response(ids(6), kind="response"), Response(ids(4), selected=[False] * 4, kind="response")], row=3
        ),
    ]
