"""The only importer of the extension."""

from pyprefopt._rust import Tokenizer, render_chat, spans_to_mask, truncate_positions, truncate_text

__all__ = ["Tokenizer", "render_chat", "spans_to_mask", "truncate_positions", "truncate_text"]
