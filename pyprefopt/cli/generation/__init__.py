"""The commands that generate: `generate`, `pairs`, and `study decoding`."""
