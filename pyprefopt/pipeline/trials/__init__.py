"""A loss or a provider of token rewards, tried on random rows: of the user's own or ours."""
