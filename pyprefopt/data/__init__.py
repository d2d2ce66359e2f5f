"""The data path: formats, chat templates, tokenization, truncation, selection, packing, stores, loader.

Names load on first use, so that `import pyprefopt.data` needs neither torch nor Polars.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyprefopt.data.loader import StepLoader as StepLoader
    from pyprefopt.data.pack import Packer as Packer
    from pyprefopt.data.pack import pack as pack
    from pyprefopt.data.read import read_candidates as read_candidates
    from pyprefopt.data.read import read_instructions as read_instructions
    from pyprefopt.data.read import read_preferences as read_preferences
    from pyprefopt.data.select import select_top_k as select_top_k
    from pyprefopt.data.select import top_k_mask as top_k_mask
    from pyprefopt.data.sources import open_source as open_source
    from pyprefopt.data.sources import parse_block as parse_block
    from pyprefopt.data.store import SegmentStore as SegmentStore
    from pyprefopt.data.store import ValueStore as ValueStore
    from pyprefopt.data.tokenize import load_tokenizer as load_tokenizer
    from pyprefopt.data.tokenize import tokenize as tokenize
    from pyprefopt.data.toy import write_toy as write_toy
    from pyprefopt.data.truncate import truncate as truncate

_HOMES = {
    "loader": ("StepLoader",),
    "pack": ("Packer", "pack"),
    "read": ("read_candidates", "read_instructions", "read_preferences"),
    "select": ("select_top_k", "top_k_mask"),
    "sources": ("open_source", "parse_block"),
    "store": ("SegmentStore", "ValueStore"),
    "tokenize": ("load_tokenizer", "tokenize"),
    "toy": ("write_toy",),
    "truncate": ("truncate",),
}
_LAZY = {name: module for module, names in _HOMES.items() for name in names}


class _Room(ModuleType):
    """`tokenize`, `truncate` and `pack` are functions in modules of the same name: here the name means the function."""

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
