"""A rough account of the memory that training takes, for `--check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pyprefopt.modeling.checkpoints.quantized import stored_bytes
from pyprefopt.modeling.packed_model import causal_lm

if TYPE_CHECKING:
    from torch import nn


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
