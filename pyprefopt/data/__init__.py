"""The data path: formats, chat templates, tokenization, truncation, selection, packing, stores, loader.

Names load on first use, so that `import pyprefopt.data` needs neither torch nor Polars.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyprefopt.lazy import lazy_names

if TYPE_CHECKING:
    from pyprefopt.data.batching.alignment import spans_to_mask as spans_to_mask
    from pyprefopt.data.batching.alignment import transfer_values as transfer_values
    from pyprefopt.data.batching.loader import StepLoader as StepLoader
    from pyprefopt.data.batching.packing import Packer as Packer
    from pyprefopt.data.batching.packing import pack as pack
    from pyprefopt.data.batching.packing import pack_lengths as pack_lengths
    from pyprefopt.data.batching.selection import random_mask as random_mask
    from pyprefopt.data.batching.selection import select_tokens as select_tokens
    from pyprefopt.data.batching.selection import select_top_k as select_top_k
    from pyprefopt.data.batching.selection import threshold_mask as threshold_mask
    from pyprefopt.data.batching.selection import top_k_mask as top_k_mask
    from pyprefopt.data.embedded import write_toy as write_toy
    from pyprefopt.data.preparation.job import prepare as prepare
    from pyprefopt.data.preparation.report import inspect as inspect
    from pyprefopt.data.reading.blocks import parse_block as parse_block
    from pyprefopt.data.reading.frames import read_candidates as read_candidates
    from pyprefopt.data.reading.frames import read_instructions as read_instructions
    from pyprefopt.data.reading.frames import read_preferences as read_preferences
    from pyprefopt.data.reading.pairs import pick_pairs as pick_pairs
    from pyprefopt.data.reading.sources import open_source as open_source
    from pyprefopt.data.store.segments import SegmentStore as SegmentStore
    from pyprefopt.data.store.segments import ValueStore as ValueStore
    from pyprefopt.data.tokenization.render import apply_chat_template as apply_chat_template
    from pyprefopt.data.tokenization.segments import load_tokenizer as load_tokenizer
    from pyprefopt.data.tokenization.segments import tokenize as tokenize
    from pyprefopt.data.tokenization.segments import tokenize_rows as tokenize_rows
    from pyprefopt.data.tokenization.token_columns import attach_weights as attach_weights
    from pyprefopt.data.truncation.dispatch import truncate as truncate
    from pyprefopt.data.truncation.dispatch import truncate_column as truncate_column

_load, __dir__ = lazy_names(__name__, __file__)


def __getattr__(name: str) -> Any:
    value = _load(name)
    if "polars" in sys.modules:  # whoever has our functions has `pl.col(…).prefopt` too
        import_module("pyprefopt.data.namespace")
    return value
