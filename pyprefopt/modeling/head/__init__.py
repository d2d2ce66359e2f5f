"""From hidden states to log-probs, in blocks of the vocabulary."""
