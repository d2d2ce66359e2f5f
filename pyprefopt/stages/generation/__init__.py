"""Samples of prompts, as a stage."""
