"""What training a model takes: memory, for `--check`, and operations, whatever the engine recomputes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyprefopt.modeling.checkpoints.quantized import stored_bytes
from pyprefopt.modeling.packed_model import PackedModel, body, causal_lm
from pyprefopt.modeling.reference import ReferencedModel
from pyprefopt.modeling.reward_head import RewardModel

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank without ZeRO.

    ZeRO stage 1 divides `optimizer` by the ranks, 2 also `gradients`, 3 also `parameters`.
    """

    parameters: int  # all weights as they are stored, those of a reference beside the policy too
    gradients: int  # of the trained weights
    optimizer: int  # its float32 numbers, and the float32 copies of bfloat16 weights
    activations: int  # of one micro-batch: what the backward pass reads, and the head's blocks of logits

    @property
    def total(self) -> int:
        """All four together, bytes."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: nn.Module, *, tokens: int, optimizer_states: int = 2, gradient_checkpointing: bool = False
) -> MemoryEstimate:
    """Estimate the memory that one training step takes.

    Activations are right to perhaps a third. A layer's backward pass reads about 2 x (8 hidden + 3 intermediate)
    numbers a token and layer; with checkpointing one hidden state a token and layer, and one whole layer. The head's
    logits exist one vocabulary block at a time: three float32 blocks (logits, probabilities, gradient).

    Args:
        model: a transformers model, plain, under PEFT, or in a LogpsModel, ReferencedModel or RewardModel.
        tokens: input tokens of a micro-batch.
        optimizer_states: float32 numbers that an optimizer keeps for a trained weight (AdamW 2); a bfloat16 weight
            also has a float32 master copy.
        gradient_checkpointing: whether layers are recomputed in the backward pass.

    Returns:
        Bytes on one rank without ZeRO.

    Example:
        >>> estimate_memory(load_model("models/base"), tokens=16384).total / 2**30  # GiB  # doctest: +SKIP
    """
    parameters = list({id(p): p for p in model.parameters()}.values())
    reference = getattr(model, "reference", None)  # a frozen model beside the policy
    beside = [] if reference is None else list({id(p): p for p in reference.parameters()}.values())
    trained = [p for p in parameters if p.requires_grad]
    config = causal_lm(model).config.get_text_config()
    size = parameters[0].element_size()
    masters = sum(4 * p.numel() for p in trained if p.dtype == torch.bfloat16)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = 2 * (8 * hidden + 3 * intermediate) * tokens * size
    kept = layers * hidden * tokens * size + layer if gradient_checkpointing else layers * layer
    logits = 3 * 4 * tokens * min(4096, config.vocab_size)
    return MemoryEstimate(
        parameters=sum(stored_bytes(p) for p in parameters + beside),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer=sum(4 * optimizer_states * p.numel() for p in trained) + masters,
        activations=kept + logits,
    )


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
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # a model without attention
        return 0.0
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(config.num_hidden_layers * heads * size)
