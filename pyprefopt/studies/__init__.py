"""Grids of runs, their tables and figures."""
