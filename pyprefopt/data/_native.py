"""The only importer of the extension."""

from pyprefopt._rust import (
    Packer,
    Tokenizer,
    render_chat,
    select_top_k,
    spans_to_mask,
    top_k_mask,
    truncate_positions,
    truncate_text,
)

__all__ = [
    "Packer",
    "Tokenizer",
    "render_chat",
    "select_top_k",
    "spans_to_mask",
    "top_k_mask",
    "truncate_positions",
    "truncate_text",
]
