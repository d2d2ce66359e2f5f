"""A source becomes a folder of token segments."""
