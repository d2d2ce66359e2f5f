"""The only importer of the extension."""

from pyprefopt._rust import (
    Packer,
    TextBlocks,
    Tokenizer,
    detect_format,
    format_fields,
    parse_rows,
    render_chat,
    select_top_k,
    spans_to_mask,
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
    "parse_rows",
    "render_chat",
    "select_top_k",
    "spans_to_mask",
    "top_k_mask",
    "truncate_positions",
    "truncate_text",
]
