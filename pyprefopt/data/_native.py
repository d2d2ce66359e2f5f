"""The only importer of the extension."""

from pyprefopt._rust import (
    Packer,
    TextBlocks,
    Tokenizer,
    detect_format,
    format_fields,
    pack_lengths,
    parse_instructions,
    parse_preferences,
    render_chat,
    select_top_k,
    spans_to_mask,
    split_lines,
    top_k_mask,
    truncate_positions,
    truncate_text,
)

__all__ = [
    "Packer",
    "TextBlocks",
    "Tokenizer",
    "detect_format",
    "format_fields",
    "pack_lengths",
    "parse_instructions",
    "parse_preferences",
    "render_chat",
    "select_top_k",
    "spans_to_mask",
    "split_lines",
    "top_k_mask",
    "truncate_positions",
    "truncate_text",
]
