"""The config of a tiny copy of a model, on which is seen what its architecture does.

It is the model's own with few layers, heads and ids, windows that are shorter than the documents of the proof, and an
original context that some of them exceed; everything else is as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from pyprefopt.modeling.attention.backends import PLAIN
from pyprefopt.modeling.attention.packed import WAY_SETTING

TEXT = 9  # tokens of the shortest document of the proof
_VOCABULARY, _WINDOW, _WIDTH, _MOST_LAYERS, _LONGEST_CONTEXT, _WIDEST_HEAD = 64, 4, 32, 8, 2**16, 512
_SHARING = "num_kv_shared_layers"  # how many of the last layers take keys and values from those before them
_ORIGINAL = "original_max_position_embeddings"  # of a tiny copy so many that the text fits, and the responses do not


def tiny_config(config: PreTrainedConfig, way: str = PLAIN) -> PreTrainedConfig:
    """The config of a tiny copy that reads packs in this way: the widths of one head stay, and whatever is no size."""
    tiny = copy.deepcopy(config)
    for part in parts_of(tiny):
        part.__dict__.pop("_name_or_path", None)
        setattr(part, WAY_SETTING, way)
        own = _settings_of_layers(part)
        if own:
            part.per_layer_config = None
        own = _keep_few_layers(part, own)
        _shrink(part, own)
        if own:
            part.per_layer_config = own
        _shorten_original(part)
    return tiny


def parts_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and those inside it."""
    yield config
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            yield from parts_of(part)


def _settings_of_layers(config: PreTrainedConfig) -> dict[int, dict[str, Any]]:
    """What single layers have in place of the config's own."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    return {int(layer): settings for layer, settings in config.to_dict()["per_layer_config"].items()}


def _keep_few_layers(config: PreTrainedConfig, own: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Keep one layer of each kind that lists with an entry a layer, and `own`, distinguish, and two at least.

    Returns:
        `own` of the layers that are kept, by their new numbers.
    """
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int) or count <= 2:
        return own
    sharing = count - int(getattr(config, _SHARING, None) or 0)  # the first layer that takes what another has computed
    lists = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list | tuple | (str if "pattern" in name else list)) and len(value) == count
    }
    first: dict[str, int] = {}
    for layer in range(count):
        first.setdefault(str([layer >= sharing, own.get(layer), *(value[layer] for value in lists.values())]), layer)
    kept = list(first.values())[:_MOST_LAYERS]
    kept += [layer for layer in range(count) if layer not in kept][: max(0, 2 - len(kept))]
    for name, value in lists.items():
        few = [value[layer] for layer in sorted(kept)]
        setattr(config, name, "".join(few) if isinstance(value, str) else type(value)(few))
    config.num_hidden_layers = len(kept)
    if sharing < count:
        setattr(config, _SHARING, sum(layer >= sharing for layer in kept))
    return {place: own[layer] for place, layer in enumerate(sorted(kept)) if layer in own}


def _shrink(config: PreTrainedConfig, own: dict[int, dict[str, Any]]) -> None:
    """Make widths, vocabularies and windows small, in `own` too; the number of heads falls as the hidden size does."""
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    hidden = hidden if isinstance(hidden, int) else 2**62
    ratio = heads / 2 if isinstance(heads, int) and heads > 2 else 1.0
    if not isinstance(heads, int):
        ratio = max(1.0, min(8.0, hidden / 64))
    elif hidden < 2**62:
        ratio *= max(1.0, hidden / max(heads, 1) / _WIDEST_HEAD)
    depth = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for name, value in list(vars(config).items()):
        sizes = value if isinstance(value, list) and value else [value]  # one for all layers, or one for each
        if any(type(size) is not int or size < 1 for size in sizes) or name.startswith("_") or name == depth:
            continue
        small = [_small(name, size, hidden, ratio) for size in sizes]
        if small != sizes:
            setattr(config, name, small if isinstance(value, list) else small[0])
    for settings in own.values():
        sizes_of_layer = {name: size for name, size in settings.items() if type(size) is int and size > 0}
        settings |= {name: _small(name, size, hidden, ratio) for name, size in sizes_of_layer.items()}
    if isinstance(getattr(config, "mamba_d_ssm", None), int):  # of Falcon-H1: the width of all heads together
        config.mamba_d_ssm = config.mamba_n_heads * config.mamba_d_head


def _shorten_original(config: PreTrainedConfig) -> None:
    """Let the context that a model was made for first, before its positions were scaled, end between the documents."""
    settings = [vars(config), *(part for part in vars(config).values() if isinstance(part, dict))]
    settings += [part for outer in settings[1:] for part in outer.values() if isinstance(part, dict)]
    for part in settings:
        if isinstance(part.get(_ORIGINAL), int):
            part[_ORIGINAL] = min(part[_ORIGINAL], TEXT + 1)


def _small(name: str, value: int, hidden: int, ratio: float) -> int:
    """The size `name` of a tiny copy; `value` itself where it is no size, or one that costs little."""

    def has(*words: str) -> bool:
        return any(word in name for word in words)

    small = value
    if name.endswith("token_id"):
        small = 0
    elif has("vocab"):
        small = min(value, _VOCABULARY)
    elif has("window", "chunk", "local_attention", "floor_scale") and not has("layer"):
        small = min(value, _WINDOW)
    elif has("first_k"):  # layers before the first with experts
        small = 1
    elif has("position", "length", "ctx", "seq"):
        small = min(value, _LONGEST_CONTEXT)
    elif has("theta", "base"):
        pass
    elif has("head") and not has("dim", "size", "d_head"):
        small = max(1, int(value / ratio))
    elif has("intermediate", "inner", "ffn"):
        small = min(value, _WIDTH)
    elif value >= hidden and ratio > 1:
        small = 8 * math.ceil(value / ratio / 8)  # experts' products want multiples
    return small
