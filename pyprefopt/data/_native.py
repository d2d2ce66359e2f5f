"""The only importer of the extension."""

from pyprefopt._rust import (
    Packer,
    Tokenizer,
    detect_format,
    pack_lengths,
    parse_instructions,
    parse_preferences,
    render_chat,
    select_top_k,
    spans_to_mask,
    split_json,
    top_k_mask,
    truncate_positions,
    truncate_text,
)

__all__ = [
    "Packer",
    "Tokenizer",
    "detect_format",
    "pack_lengths",
    "parse_instructions",
    "parse_preferences",
    "render_chat",
    "select_top_k",
    "spans_to_mask",
    "split_json",
    "top_k_mask",
    "truncate_positions",
    "truncate_text",
]
