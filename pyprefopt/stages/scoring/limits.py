"""Settings of commands that train nothing, and how long the texts may be that they score."""

from __future__ import annotations

LIMITS = ("max_prompt_tokens", "prompt_overflow", "max_tokens", "score_reasoning")  # settings of a run
UNTRAINED = {"eval_ratio": 0.0, "zero_stage": 1}  # of commands that train nothing: no precision needs a ZeRO stage
WHOLE = {"max_prompt_tokens": 8192, "max_tokens": 16384}  # texts are scored whole, where the model reads so much
