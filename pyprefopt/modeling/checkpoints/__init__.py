"""Weights, adapters and tokenizers: read and written."""
