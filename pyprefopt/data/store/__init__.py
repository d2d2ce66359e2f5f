"""Segments and values per token, on disk."""
