"""A transformers model that reads packed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.attention.backends import PLAIN, UNPACKED
from pyprefopt.modeling.attention.layout import Pack, PackedLayout
from pyprefopt.modeling.attention.packed import ATTENTION_NAME, WAY_SETTING
from pyprefopt.modeling.documents import run_documents
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pyprefopt.types import PackedBatch


class PackedModel(nn.Module):
    """A transformers model (plain, or under PEFT) that is run on packed batches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        attention = self.causal.config._attn_implementation
        if attention != ATTENTION_NAME and not is_unpacked(self.causal):
            raise ConfigError(
                f"attention implementation must be {ATTENTION_NAME!r}, got {attention!r}; "
                "load the model with pyprefopt.modeling.load_model"
            )
        self.train(model.training)

    @property
    def causal(self) -> PreTrainedModel:
        """The transformers model, below PEFT where there is PEFT."""
        return causal_lm(self.model)

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """Last hidden states of the pack, [N, H]."""
        return run_pack(body(self.causal), batch)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts (`bfloat16()`, `to(dtype)`) leave buffers' precision alone: rotary frequencies must stay float32."""
        before = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.dtype != buffer.dtype:
                owner, _, leaf = name.rpartition(".")
                self.get_submodule(owner)._buffers[leaf] = buffer.to(after.device)
        return self


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a LogpsModel, a PEFT model, or itself."""
    if isinstance(model, PackedModel):
        model = model.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def body(causal: PreTrainedModel) -> nn.Module:
    """A causal model without its head: what transformers names so, else the one transformers model in it."""
    inner = [child for child in causal.children() if hasattr(child, "config")]
    base: nn.Module = causal.base_model
    return inner[0] if base is causal and len(inner) == 1 else base


def is_unpacked(module: nn.Module) -> bool:
    """Whether a transformers module reads a pack's documents through its own forward."""
    return getattr(module.config, WAY_SETTING, None) == UNPACKED


def run_pack(module: nn.Module, batch: PackedBatch | Pack, output: str = "last_hidden_state") -> Tensor:
    """Run a transformers module on a pack, in the way that its config names.

    Args:
        module: a causal model, or the base of one.
        batch: of torch tensors, on the module's device.
        output: the name of what is taken of the module's outputs.

    Returns:
        [N, H], in the order of the pack.
    """
    if is_unpacked(module):
        return run_documents(module, batch, output)
    outputs = module(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        use_cache=False,
        return_dict=True,
        packed_layout=PackedLayout.of(batch),
    )
    states: Tensor = outputs[output][0]
    return states


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """While inside, in evaluation mode, attention goes its plain way.

    A GPU's is tried on its own, and the model may still be on the CPU.
    """
    training = model.training
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    wanted = [(config, getattr(config, WAY_SETTING, UNPACKED)) for config in configs]
    wanted = [(config, way) for config, way in wanted if way != UNPACKED]
    model.eval()
    try:
        for config, _ in wanted:
            setattr(config, WAY_SETTING, PLAIN)
        yield
    finally:
        for config, way in wanted:
            setattr(config, WAY_SETTING, way)
        model.train(training)


@torch.no_grad()
def outputs_in_evaluation(model: nn.Module, batch: PackedBatch) -> Outputs:
    """What a model or an engine gives for a batch in evaluation mode; it is left in the mode in which it was."""
    training = model.training
    model.eval()
    try:
        return Outputs.of(model(batch))
    finally:
        model.train(training)
