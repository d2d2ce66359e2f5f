"""The log-prob engine: log-probs of a packed batch's scored tokens under a causal language model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.weights import not_finite
from pyprefopt.modeling.head.choice import Kernel
from pyprefopt.modeling.head.outputs import Readout, token_logps, token_outputs
from pyprefopt.modeling.head.transform import HeadTransform
from pyprefopt.modeling.packed_model import PackedModel, body, outputs_in_evaluation, plain_attention, run_pack
from pyprefopt.modeling.proof import (
    TOLERANCE,
    packing_differences,
    refuse,
    refuse_what_fails,
    sample_pack,
    states_alone,
    states_packed,
)
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from pyprefopt.types import PackedBatch


class LogpsModel(PackedModel):
    """A causal language model whose forward gives the log-probs of a packed batch's scored tokens.

    Hidden states come from the base model, the head is applied to the scored positions only. Everything happens
    inside `forward`, so DeepSpeed ZeRO-3 gathers the head's weight as it does any other.

    Args:
        model: from `load_model`, plain or under PEFT.
        probe: compare, on a few made-up tokens, documents in a pack with documents alone and the engine with
            `model(...).logits`; False: do not, for weights that are partitioned already.
        entropy: give the entropy of each token's distribution too; the attribute may be changed at any time.
        kernel: what reads the head's output, torch, triton (on a GPU) or auto; the attribute may be changed at any
            time.

    Raises:
        ConfigError: the model was not loaded for packed batches, has no language model head, or a probe finds other
            numbers than the model's own, or weights that are not finite.

    Example:
        >>> model = LogpsModel(load_model("models/base"))  # doctest: +SKIP
        >>> logps = model(batch)  # [M] float32, with gradient  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, *, probe: bool = True, entropy: bool = False, kernel: Kernel = "auto") -> None:
        super().__init__(model)
        self.entropy, self.kernel = entropy, kernel
        if self.causal.get_output_embeddings() is None:
            raise ConfigError(f"{type(self.causal).__name__} has no language model head; use a causal language model")
        self.transform = HeadTransform.from_config(self.causal.config.get_text_config())
        self.before_head: tuple[nn.Module, ...] = ()  # layers of the model, in a tuple where torch does not look
        if probe:
            hidden = check_packing(self)
            with plain_attention(self):
                _find_head(self, hidden)

    def forward(self, batch: PackedBatch) -> Tensor | Outputs:
        """Compute log p of `target_ids`, read at `hidden_index`.

        Args:
            batch: of torch tensors, on the model's device.

        Returns:
            Log-probs [M] in nats, in max(float32, the model's dtype); while `entropy` is True, Outputs of log-probs
            and entropies, both [M] in nats.
        """
        return token_outputs(self.readout(batch), batch.target_ids, entropy=True) if self.entropy else self.logps(batch)

    def logps(self, batch: PackedBatch) -> Tensor:
        """Log-probs [M], whatever else `forward` gives."""
        return token_logps(self.readout(batch), batch.target_ids)

    def readout(self, batch: PackedBatch) -> Readout:
        """The head, and the hidden states [M, H] that it reads for the scored tokens."""
        # Indexing would add gradients of a repeated position up in any order; an embedding's backward pass has one.
        hidden = F.embedding(batch.hidden_index, self.hidden_states(batch))
        for layer in self.before_head:
            hidden = layer(hidden)
        return Readout(self.causal.get_output_embeddings(), hidden, self.transform, self.kernel)


def score_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Compute a batch's log-probs without gradient and in evaluation mode.

    Args:
        model: a LogpsModel, or an engine around one; it is left in the mode in which it was.
        batch: of torch tensors, on the model's device.

    Returns:
        Log-probs [M] of the scored tokens, in nats, in max(float32, the model's dtype).

    Raises:
        ConfigError: a reward model, which has no log-probs.

    Example:
        >>> ref_logps = score_logps(model, batch)  # doctest: +SKIP
    """
    logps = outputs_in_evaluation(model, batch).logps
    if logps is None:
        raise ConfigError("a reward model has no log-probs; score tokens with a causal language model")
    return logps


def check_packing(model: PackedModel) -> Tensor:
    """Compare the documents of a made-up pack with the same documents alone.

    Returns:
        The last hidden states of the pack, [N, H].

    Raises:
        ConfigError: they differ by more than rounding, or are not finite.
    """
    weight = model.causal.get_input_embeddings().weight
    if weight.dtype not in TOLERANCE:
        raise ConfigError(f"dtype must be one of float32, bfloat16, float64, got {weight.dtype}; load with load_model")
    with plain_attention(model), refuse_what_fails(model.causal):
        packed, alone = states_packed(model.causal), states_alone(model.causal)
    differences = packing_differences(packed, alone)
    _check_finite(model, sum(differences.values()))
    if off := {layout: value for layout, value in differences.items() if value > TOLERANCE[weight.dtype]}:
        refuse(model.causal, off, "the model itself")
    return packed


@torch.no_grad()
def _find_head(model: LogpsModel, hidden: Tensor) -> None:
    """Let log-probs from the hidden states of a made-up pack be those of the model's own logits.

    The usual transform is kept where it gives them; else the other meanings of the config's numbers are tried, then
    layers that stand between the model's body and its head.

    Raises:
        ConfigError: nothing gives them.
    """
    causal, pack = model.causal, sample_pack(model.causal)
    head, targets = causal.get_output_embeddings(), pack.input_ids.roll(-1)
    logits = run_pack(causal, pack, "logits")
    between = [layer for layer in causal.children() if layer is not head and layer is not body(causal)]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    whole = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    tolerance, least = TOLERANCE[causal.get_input_embeddings().weight.dtype], math.inf
    for layers in ((), tuple(between)):
        states = _through(layers, hidden)
        if states is None:
            break
        for transform in (model.transform, *HeadTransform.candidates(causal.config.get_text_config())):
            ours = token_logps(Readout(head, states, transform, model.kernel), targets)
            difference = (ours - whole).abs().mean().item()
            _check_finite(model, difference)
            if difference <= tolerance:
                model.before_head, model.transform = layers, transform
                return
            least = min(least, difference)
    raise ConfigError(
        f"{type(causal).__name__}: log-probs of a pack differ from its own logits by {least:.3g} nats a token (at most "
        f"{tolerance}); pyprefopt cannot train this architecture exactly, use another model"
    )


def _through(layers: tuple[nn.Module, ...], hidden: Tensor) -> Tensor | None:
    """What layers make of hidden states; None where these are not layers from hidden states to hidden states."""
    states = hidden
    try:
        for layer in layers:
            states = layer(states)
    except Exception:  # whatever a module raises that wants something else
        return None
    return states if isinstance(states, Tensor) and states.shape == hidden.shape else None


def _check_finite(model: PackedModel, difference: float) -> None:
    """ConfigError where a comparison gave no number because the weights hold NaN or infinity."""
    if not math.isfinite(difference):
        causal = model.causal
        raise ConfigError(
            f"the weights of {causal.name_or_path or type(causal).__name__} must be finite, but hold "
            f"{not_finite(causal) or 'numbers too large to compute with'}; give a checkpoint that has none"
        )
