"""Evaluations of given responses."""
