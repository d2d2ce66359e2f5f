"""How long given texts may be that are scored and not trained on."""

from __future__ import annotations

LIMITS = ("max_prompt_tokens", "prompt_overflow", "max_tokens", "score_reasoning")  # settings of a run
WHOLE = {"max_prompt_tokens": 8192, "max_tokens": 16384}  # texts are scored whole, where the model reads so much
