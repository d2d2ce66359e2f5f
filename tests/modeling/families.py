"""How the families of transformers' causal language models read packs: the table of docs/families.md.

Each family's own default config is made tiny, loaded as users load a model, shaken, and its log-probs in both layouts
are compared with transformers' own on each document alone.

    python -m tests.modeling.families            # every family, as Markdown
    python -m tests.modeling.families mamba llama4_text
"""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pyprefopt.errors import PyprefoptError
from pyprefopt.modeling import LogpsModel, load_model
from pyprefopt.modeling.attention.backends import UNPACKED
from pyprefopt.modeling.attention.packed import WAY_SETTING
from pyprefopt.modeling.packed_model import is_unpacked
from pyprefopt.modeling.tiny_copy import tiny_config
from tests.modeling.models import LAYOUTS, eager_twin, make_groups, plain_logps, shake
from tests.reference.packing import pack_groups

# What a family's default config lacks, or has as no model does.
_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_EXPERTS = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_v2": _EXPERTS | {"topk_method": "greedy"},
    "dots1": _EXPERTS,
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": _HEADS,
    "nemotron": _HEADS,
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local"] * 2, "num_hidden_layers": 2},
    "xmod": {"default_language": "en_XX"},
}
# Whose sizes depend on each other: these are small already.
_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1}
SMALL: dict[str, dict[str, Any]] = {
    "dory": _SMALL | {
        "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 3, "n_input_layers": 1,
        "n_recurrent_layers": 1, "n_output_layers": 1,
    },
    "xlstm": _SMALL | {"num_hidden_layers": 2, "num_heads": 2, "chunk_size": 16},
    "zamba": _SMALL | {
        "intermediate_size": 48, "num_hidden_layers": 12, "num_key_value_heads": 4, "mamba_d_state": 4,
    },
    "zamba2": _SMALL | {
        "intermediate_size": 48, "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 4, "n_mamba_heads": 4, "chunk_size": 8,
    },
}  # fmt: skip


class Family(NamedTuple):
    """One row of the table."""

    name: str
    way: str  # packed, unpacked, or refused
    difference: float  # largest one of a token's log-prob from plain transformers, in nats
    reason: str = ""  # why it is refused

    def row(self) -> str:
        """The row in Markdown."""
        return f"| `{self.name}` | {self.way} | {self.reason or f'{self.difference:.0e}'} |"


def try_family(name: str, directory: Path) -> Family:
    """Load and compare a tiny model of a family."""
    config = CONFIG_MAPPING[name](**SETTINGS.get(name, {}), **SMALL.get(name, {}))
    if config.is_encoder_decoder:
        return Family(name, "refused", math.nan, "an encoder-decoder")
    if name not in SMALL:
        config = tiny_config(config, UNPACKED)
    content = {key: value for key, value in config.to_dict().items() if key not in (WAY_SETTING, "dtype")}
    file = directory / "config.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    try:
        loaded = load_model(file)
        shake(loaded, scale=0.1)
        model = LogpsModel(loaded)
    except PyprefoptError as error:
        built = "that transformers builds" not in str(error) and "not installed" not in str(error)
        return Family(name, "refused" if built else "not tried", math.nan, _shorten(str(error)))
    groups = make_groups(first_id=1, vocab_size=config.get_text_config().vocab_size)
    plain = plain_logps(eager_twin(model.causal), groups)
    with torch.no_grad():
        packs = [model(pack_groups(groups, layout).to()) for layout in LAYOUTS]
    difference = max((pack - plain).abs().max().item() for pack in packs)
    return Family(name, "unpacked" if is_unpacked(model.causal) else "packed", difference)


def _shorten(message: str) -> str:
    """The reason in a word, where it is one of the usual."""
    usual = {
        "no causal language model": "a token sees what follows",
        "timm": "needs the package timm",
        "that transformers builds": "its default config, made tiny, is none that transformers builds",
    }
    return next((reason for words, reason in usual.items() if words in message), message.split(";", maxsplit=1)[0])


def main(names: list[str]) -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print("| family (`model_type`) | read | largest difference (nats a token), or why not |\n| --- | --- | --- |")
    for name in names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as directory:
            try:
                print(try_family(name, Path(directory)).row(), flush=True)
            except Exception as error:  # its default config, made tiny, is none that transformers builds
                print(
                    f"| `{name}` | not tried | {type(error).__name__}, {str(error).splitlines()[0][:60]} |", flush=True
                )


if __name__ == "__main__":
    main(sys.argv[1:])
