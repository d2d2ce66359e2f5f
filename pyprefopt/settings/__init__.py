"""The settings of a run: declared, read, checked."""
