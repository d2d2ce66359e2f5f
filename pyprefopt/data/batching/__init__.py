"""Which tokens and which pairs train together."""
