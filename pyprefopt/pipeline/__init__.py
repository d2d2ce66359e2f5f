"""A run from the settings to the policy."""
