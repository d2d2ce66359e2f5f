"""Attention over a packed micro-batch: a segment sees its parent and itself, causally, and nothing else.

Registered with transformers as `pyprefopt_packed`: under that name Hugging Face builds no mask, and the model kwarg
`packed_layout` reaches the function below in every layer. What computes it is chosen in `modeling.attention.backends`.
Sliding windows, chunks, soft caps and sinks are honoured; everything else that an architecture may ask for is refused
by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling.attention import loop
from pyprefopt.modeling.attention.backends import Demand, choose
from pyprefopt.modeling.attention.layout import PackedLayout, Rule, Run

if TYPE_CHECKING:
    from torch import Tensor, nn

ATTENTION_NAME = "pyprefopt_packed"
WAY_SETTING = "packed_attention"  # where a model's config names the way that computes it; absent: auto
REMEDY = "set attention auto or unpacked, which runs each document on its own"
# Masks that the ways know how to build.
LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

# What Hugging Face passes along that does not change the attention.
_HARMLESS = frozenset(
    {"position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions", "output_hidden_states",
     "return_dict", "logits_to_keep"}
)  # fmt: skip
_REASONS = {
    "sinks": "attention sinks under another name",
    "position_bias": "a learned position bias",
    "head_mask": "head masks",
    "cu_seq_lens_q": "another description of the packing",
    "attention_mask": "a mask besides the packed layout",
}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: query [1, heads, N, D], key and value [1, key heads, N, D] -> [1, N, heads, D].

    `sliding_window` w lets position i see positions j with i - w < j <= i of its own document, as in Hugging Face;
    `s_aux` are sinks, a score of each head [heads] that takes a share of its attention.
    Raises ConfigError for what it cannot honour.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = Rule(scaling, sliding_window, softcap, _chunk_in_config(module), s_aux is not None)
    _refuse_options(module, {"attention_mask": attention_mask, **kwargs}, dropout, is_causal)
    _refuse_shapes(module, query, key, rule)
    if packed_layout is None:
        packed_layout = PackedLayout((Run(0, query.shape[2]),), query.shape[2])  # a plain call: one document
    if packed_layout.size != query.shape[2]:
        raise DataError(f"packed_layout covers {packed_layout.size} tokens, the model was given {query.shape[2]}")
    wanted = getattr(getattr(module, "config", None), WAY_SETTING, "auto")
    way = choose(wanted, Demand.of(query, key, rule))
    if s_aux is not None:
        return loop.attend(query, key, value, packed_layout, rule, s_aux), None
    return way.attend(query, key, value, packed_layout, rule), None


def _refuse_options(module: nn.Module, options: dict[str, Any], dropout: float, is_causal: bool | None) -> None:
    """ConfigError for an option that packed attention would have to ignore."""
    name = type(module).__name__
    for option, value in options.items():
        if value is None or value is False or option in _HARMLESS:
            continue
        what = _REASONS.get(option, "which packed attention does not know")
        raise ConfigError(f"{name} asks for {option} ({what}), which packed attention does not honour; {REMEDY}")
    if dropout:
        raise ConfigError(f"{name}: attention dropout must be 0, got {dropout}; load the model with load_model")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ConfigError(f"{name} is not causal; packed attention serves causal language models only")


def _refuse_shapes(module: nn.Module, query: Tensor, key: Tensor, rule: Rule) -> None:
    """ConfigError for a batch dimension, a cache, cross-attention, or a window that does not arrive."""
    name = type(module).__name__
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        shapes = f"{tuple(query.shape)} and {tuple(key.shape)}"
        raise ConfigError(f"{name}: query and key must be one pack of equal length, got {shapes}; no cache, no batches")
    if rule.sinks and rule.softcap is not None:
        raise ConfigError(
            f"{name} asks for attention sinks with a soft cap, which packed attention does not honour; {REMEDY}"
        )
    if rule.window is None and _window_in_config(module):
        raise ConfigError(
            f"{name} has a sliding window in its config that does not reach the attention function; {REMEDY}"
        )


def _layer_type(module: nn.Module) -> str | None:
    """The kind of attention that the config names for this layer; None where it names none."""
    layer_types, index = (
        getattr(getattr(module, "config", None), "layer_types", None),
        getattr(module, "layer_idx", None),
    )
    return layer_types[index] if layer_types and index is not None else None


def _chunk_in_config(module: nn.Module) -> int | None:
    """The chunks in which this layer attends: a mask of the model in transformers, and no option of the layer."""
    if _layer_type(module) != "chunked_attention":
        return None
    return int(module.config.attention_chunk_size)  # type: ignore[union-attr, arg-type]


def _window_in_config(module: nn.Module) -> bool:
    """Whether the config gives this layer a sliding window."""
    config = getattr(module, "config", None)
    if getattr(config, "layer_types", None):
        return _layer_type(module) == "sliding_attention"
    return getattr(config, "sliding_window", None) is not None and bool(getattr(config, "use_sliding_window", True))


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, packed_attention)
