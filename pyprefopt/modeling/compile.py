"""`torch.compile` of the parts of a transformers model where it can help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.packed_model import body

if TYPE_CHECKING:
    from pyprefopt.modeling.packed_model import PackedModel


def compile_layers(model: PackedModel) -> int:
    """Compile the norms and the feed-forward block of every layer in place.

    Packs have another number of tokens every time, so shapes are symbolic. Attention and head stay as they are: they
    work document by document and vocabulary block by block, and would be compiled again for every pack. Weights keep
    their names.

    Returns:
        How many modules are compiled.

    Raises:
        ConfigError: the model's layers are not found.
    """
    layers = getattr(body(model.causal), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            f"compile must be off for {type(model.causal).__name__}, whose layers are not found; leave it out"
        )
    parts = [part for layer in layers for part in layer.children() if _simple(part)]
    for part in parts:
        part.compile(dynamic=True)
    return len(parts)


def _simple(part: nn.Module) -> bool:
    """Feed-forward blocks and norms, found by their names, which all of transformers' layers share."""
    name = type(part).__name__.lower()
    return "mlp" in name or "norm" in name
