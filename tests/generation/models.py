"""Two tiny models of each architecture, and plain ways to compute what the sampler computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyprefopt.generation.cached_model import CachedModel
from pyprefopt.modeling import load_model
from tests.modeling.models import ARCHITECTURES, VOCAB, shake, write_config

FAMILIES = {**ARCHITECTURES, "qwen3": {**ARCHITECTURES["llama"], "model_type": "qwen3", "head_dim": 8}}
QUICK = ("llama", "gpt_neox", "gemma2")  # one of each way to place tokens and to mask; the others with -m slow
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "qwen3", "mistral", "phi"))]


def tiny(name: str, folder: Path, seed: int, dtype: str = "float64") -> Any:
    """A model as generation loads it, with weights far from their initial ones."""
    model = load_model(write_config(folder / name, FAMILIES[name]), dtype=dtype, attention="unpacked")
    shake(model, seed=seed)
    return model.eval()


def cached(model: Any) -> CachedModel:
    return CachedModel(model)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, VOCAB, (int(torch.randint(1, 12, (1,), generator=generator)),), generator=generator).tolist()
        for _ in range(count)
    ]


@torch.no_grad()
def plain_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of the next token by a forward over everything, [V]."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
