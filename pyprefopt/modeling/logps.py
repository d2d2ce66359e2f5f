"""The log-prob engine: log-probs of a packed batch's scored tokens under a causal language model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling.attention.backends import PLAIN
from pyprefopt.modeling.attention.packed import WAY_SETTING
from pyprefopt.modeling.checkpoints.weights import not_finite
from pyprefopt.modeling.head.choice import Kernel
from pyprefopt.modeling.head.outputs import Readout, token_logps, token_outputs
from pyprefopt.modeling.head.transform import HeadTransform
from pyprefopt.modeling.packed_model import PackedModel, run_packed
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from pyprefopt.types import PackedBatch

# The probes' tolerance, by the model's dtype: mean absolute difference of log-probs computed in two ways, in nats.
# A head transform that is left out is off by 0.1 to 0.9 nats, bfloat16 noise by about 0.02.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}


class LogpsModel(PackedModel):
    """A causal language model (plain, or under PEFT) whose forward takes a PackedBatch and returns log-probs [M].

    Hidden states come from the base model, the head is applied to the scored positions only. Everything happens
    inside `forward`, so DeepSpeed ZeRO-3 gathers the head's weight as it does any other. At construction two probes
    on a few made-up tokens compare the engine with `model(...).logits` and documents in a pack with documents alone
    (ConfigError where they disagree); `probe=False` leaves them out, for weights that are partitioned already.

    entropy: give that of each token's distribution too, while `entropy` is True; it may be changed at any time.
    kernel: what reads the head's output, torch, triton (on a GPU) or auto; it may be changed at any time.
    """

    def __init__(self, model: nn.Module, *, probe: bool = True, entropy: bool = False, kernel: Kernel = "auto") -> None:
        super().__init__(model)
        self.entropy, self.kernel = entropy, kernel
        if self.causal.get_output_embeddings() is None:
            raise ConfigError(f"{type(self.causal).__name__} has no language model head; use a causal language model")
        self.transform = HeadTransform.from_config(self.causal.config.get_text_config())
        if probe:
            _probe(self)

    def forward(self, batch: PackedBatch) -> Tensor | Outputs:
        """log p of `target_ids` read at `hidden_index`, [M], in max(float32, the model's dtype).

        With `entropy`, Outputs of log-probs and entropies.
        """
        return token_outputs(self.readout(batch), batch.target_ids, entropy=True) if self.entropy else self.logps(batch)

    def logps(self, batch: PackedBatch) -> Tensor:
        """Log-probs [M], whatever else `forward` gives."""
        return token_logps(self.readout(batch), batch.target_ids)

    def readout(self, batch: PackedBatch) -> Readout:
        """The head, and the hidden states [M, H] that it reads for the scored tokens."""
        # Indexing would add gradients of a repeated position up in any order; an embedding's backward pass has one.
        hidden = F.embedding(batch.hidden_index, self.hidden_states(batch))
        return Readout(self.causal.get_output_embeddings(), hidden, self.transform, self.kernel)


@torch.no_grad()
def score_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Log-probs [M] without gradient and in evaluation mode; `model` is a LogpsModel, or an engine around one."""
    training = model.training
    model.eval()
    try:
        logps = Outputs.of(model(batch)).logps
    finally:
        model.train(training)
    if logps is None:
        raise ConfigError("a reward model has no log-probs; score tokens with a causal language model")
    return logps


@torch.no_grad()
def _probe(model: LogpsModel) -> None:
    """Compare the engine with the model's own logits, and a document in a pack with the same document alone."""
    with _plain_attention(model):
        _compare(model)


@torch.no_grad()
def rehearse(model: PackedModel) -> None:
    """Run a model on the meta device, which has no numbers: what its layers ask of attention is refused where it must.

    Anything else that it raises says only that the model cannot be run without numbers.
    """
    pack = _documents([torch.arange(7), torch.arange(7)])
    without = {name: getattr(pack, name).to("meta") for name in ("input_ids", "position_ids")}
    with _plain_attention(model):
        model.hidden_states(replace(pack, **without))


@contextmanager
def _plain_attention(model: PackedModel) -> Iterator[None]:
    """While inside, in evaluation mode, attention goes its plain way.

    A GPU's is tried on its own, and the model may still be on the CPU.
    """
    training = model.training
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    wanted = [(config, getattr(config, WAY_SETTING)) for config in configs if hasattr(config, WAY_SETTING)]
    model.eval()
    try:
        for config, _ in wanted:
            setattr(config, WAY_SETTING, PLAIN)
        yield
    finally:
        for config, way in wanted:
            setattr(config, WAY_SETTING, way)
        model.train(training)


def _compare(model: LogpsModel) -> None:
    causal = model.causal
    weight = causal.get_input_embeddings().weight
    vocabulary, name = weight.shape[0], type(causal).__name__
    if weight.dtype not in _TOLERANCE:
        raise ConfigError(f"dtype must be one of float32, bfloat16, float64, got {weight.dtype}; load with load_model")
    tokens = (torch.arange(23, device=weight.device) * 7919 + 3) % vocabulary  # fixed: the RNG is left alone
    pack = _documents([tokens[:11], tokens[11:]])
    ours = model.logps(pack)
    logits = run_packed(causal, pack).logits[0, pack.hidden_index].to(ours.dtype)
    whole = torch.log_softmax(logits, dim=-1).gather(1, pack.target_ids[:, None])[:, 0]
    alone = torch.cat([model.logps(_documents([part])) for part in (tokens[:11], tokens[11:])])
    tolerance = _TOLERANCE[weight.dtype]
    for what, other in (("its own logits", whole), ("documents run alone", alone)):
        difference = (ours - other).abs().mean().item()
        if not difference <= tolerance:  # also where a weight is NaN
            bad = None if math.isfinite(difference) else not_finite(causal)
            if bad is not None:
                raise ConfigError(
                    f"the weights of {causal.name_or_path or name} must be finite, but hold {bad}; give a checkpoint "
                    "that has none"
                )
            raise ConfigError(
                f"{name}: packed log-probs differ from {what} by {difference:.3g} nats a token (at most {tolerance}); "
                f"pyprefopt cannot train this architecture exactly, use another model"
            )


def _documents(documents: list[Tensor]) -> PackedBatch:
    """A pack of plain documents in which every token but each document's first is scored."""
    from pyprefopt.types import PackedBatch

    device = documents[0].device
    lengths = [len(document) - 1 for document in documents]
    if min(lengths) < 1:
        raise DataError(f"a document must have at least 2 tokens, got lengths {[n + 1 for n in lengths]}")
    count, total = len(documents), sum(lengths)
    ones, length = torch.ones(total, device=device), torch.tensor(lengths, device=device)
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])
    index, none = torch.arange(count, device=device), torch.empty(0, dtype=torch.int64, device=device)
    return PackedBatch(
        input_ids=torch.cat([document[:-1] for document in documents]),
        position_ids=positions,
        segment_offsets=torch.cat([length.new_zeros(1), length.cumsum(0)]),
        segment_parent=torch.full_like(index, -1),
        hidden_index=torch.arange(total, device=device),
        target_ids=torch.cat([document[1:] for document in documents]),
        response_index=index.repeat_interleave(length),
        token_position=positions,
        token_mask=ones,
        response_row=index,
        response_line=index,
        response_length=length.float(),
        scored_length=length.float(),
        selection_ratio=ones[:count],
        response_group=index,
        response_score=torch.full((count,), float("nan"), device=device),
        pair_chosen=none,
        pair_rejected=none,
    )
