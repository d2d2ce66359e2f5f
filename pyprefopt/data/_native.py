"""The only importer of the extension."""

from pyprefopt._rust import (
    Packer,
    TextBlocks,
    Tokenizer,
    count_content,
    count_units,
    detect_format,
    format_fields,
    kept_units,
    pack_lengths,
    parse_rows,
    render_chat,
    select_tokens,
    spans_to_mask,
    transfer_values,
    truncate_positions,
    truncate_text,
)

__all__ = [
    "Packer",
    "TextBlocks",
    "Tokenizer",
    "count_content",
    "count_units",
    "detect_format",
    "format_fields",
    "kept_units",
    "pack_lengths",
    "parse_rows",
    "render_chat",
    "select_tokens",
    "spans_to_mask",
    "transfer_values",
    "truncate_positions",
    "truncate_text",
]
