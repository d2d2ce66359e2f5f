"""Floating point operations that training a model takes: what the model needs, whatever the engine recomputes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pyprefopt.modeling.packed_model import PackedModel, body
from pyprefopt.modeling.reference import ReferencedModel
from pyprefopt.modeling.reward_head import RewardModel

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Flops:
    """Operations of one training step, forward and backward: a product and a sum are two."""

    token: float  # of each token: the matrices of all layers
    context: float  # of each position that a token sees: attention scores and their values
    scored: float  # of each token whose log-prob is taken: the head

    def total(self, tokens: float, context: float, scored: float) -> float:
        """Operations of a step with so many tokens, positions that they see in all, and scored tokens."""
        return self.token * tokens + self.context * context + self.scored * scored


def count_flops(model: nn.Module) -> Flops | str:
    """Operations of training `model`, or why they cannot be counted. Call it before ZeRO-3 takes the weights apart.

    A matrix of n numbers takes 2 n forward, 2 n for its input's gradient, and 2 n for its own where it is trained (not
    below LoRA). A reference beside the policy adds its forward. What is recomputed, elementwise or looked up does not
    count; attention in sliding windows is left out, so that the figure errs low.
    """
    if not isinstance(model, PackedModel):
        return f"{type(model).__name__} is no transformers model"
    causal = model.causal
    config = causal.config.get_text_config()
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "a mixture of experts runs a part of its weights"
    head = None if isinstance(model, RewardModel) else causal.get_output_embeddings()
    token = sum(_matrix(layer) for layer in _linear(body(causal)) if layer is not head)
    scored = 0.0 if head is None else _matrix(head)
    context = 0.0 if getattr(config, "sliding_window", None) else 12.0 * _attention_width(config)
    if isinstance(model, ReferencedModel):
        token += sum(2 * _size(layer) for layer in _linear(body(causal)) if layer is not head)
        scored += 0.0 if head is None else 2 * _size(head)
        context *= 4 / 3
    return Flops(token, context, scored)


def _linear(module: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in module.modules() if _size(layer))


def _size(layer: nn.Module) -> float:
    """Numbers of a matrix, also where they are stored quantized; 0 for what is none."""
    if isinstance(layer, nn.Linear):
        return float(layer.in_features * layer.out_features)
    return float(layer.weight.numel()) if type(layer).__name__ == "Conv1D" else 0.0  # type: ignore[operator]


def _matrix(layer: nn.Module) -> float:
    trained = any(p.requires_grad for p in layer.parameters(recurse=False))
    return (6 if trained else 4) * _size(layer)


def _attention_width(config: Any) -> float:
    """Layers x heads x size of a head."""
    heads = getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(config.num_hidden_layers * heads * size)
