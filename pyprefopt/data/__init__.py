"""The data path: formats, chat templates, tokenization, truncation, selection, packing, stores, loader.

Names load on first use, so that `import pyprefopt.data` needs neither torch nor Polars.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyprefopt.data.align import spans_to_mask as spans_to_mask
    from pyprefopt.data.align import transfer_values as transfer_values
    from pyprefopt.data.inspect import inspect as inspect
    from pyprefopt.data.loader import StepLoader as StepLoader
    from pyprefopt.data.pack import Packer as Packer
    from pyprefopt.data.pack import pack as pack
    from pyprefopt.data.pack import pack_lengths as pack_lengths
    from pyprefopt.data.prepare import prepare as prepare
    from pyprefopt.data.read import read_candidates as read_candidates
    from pyprefopt.data.read import read_instructions as read_instructions
    from pyprefopt.data.read import read_preferences as read_preferences
    from pyprefopt.data.select import random_mask as random_mask
    from pyprefopt.data.select import select_tokens as select_tokens
    from pyprefopt.data.select import select_top_k as select_top_k
    from pyprefopt.data.select import threshold_mask as threshold_mask
    from pyprefopt.data.select import top_k_mask as top_k_mask
    from pyprefopt.data.sources import open_source as open_source
    from pyprefopt.data.sources import parse_block as parse_block
    from pyprefopt.data.store import SegmentStore as SegmentStore
    from pyprefopt.data.store import ValueStore as ValueStore
    from pyprefopt.data.template import apply_chat_template as apply_chat_template
    from pyprefopt.data.tokenize import load_tokenizer as load_tokenizer
    from pyprefopt.data.tokenize import tokenize as tokenize
    from pyprefopt.data.tokenize import tokenize_rows as tokenize_rows
    from pyprefopt.data.toy import write_toy as write_toy
    from pyprefopt.data.truncate import truncate as truncate
    from pyprefopt.data.truncate import truncate_column as truncate_column
    from pyprefopt.data.weights import attach_weights as attach_weights

_HOMES = {
    "align": ("spans_to_mask", "transfer_values"),
    "inspect": ("inspect",),
    "loader": ("StepLoader",),
    "pack": ("Packer", "pack", "pack_lengths"),
    "prepare": ("prepare",),
    "read": ("read_candidates", "read_instructions", "read_preferences"),
    "select": ("random_mask", "select_tokens", "select_top_k", "threshold_mask", "top_k_mask"),
    "sources": ("open_source", "parse_block"),
    "store": ("SegmentStore", "ValueStore"),
    "template": ("apply_chat_template",),
    "tokenize": ("load_tokenizer", "tokenize", "tokenize_rows"),
    "toy": ("write_toy",),
    "truncate": ("truncate", "truncate_column"),
    "weights": ("attach_weights",),
}
_LAZY = {name: module for module, names in _HOMES.items() for name in names}


class _Room(ModuleType):
    """`tokenize`, `truncate`, `prepare` and more are functions in modules of their name: here it means the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _LAZY.get(name) == name:  # the import system binds a loaded submodule
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Room


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"pyprefopt.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'pyprefopt.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
