"""Commands that let models score given responses."""
