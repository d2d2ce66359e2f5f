"""Attention that keeps the documents of a pack apart."""
