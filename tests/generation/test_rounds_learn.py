"""On the embedded set, with its own rule as the judge, rounds raise what the rule gives the policy's samples."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyprefopt


@pytest.mark.slow  # minutes
@pytest.mark.parametrize("method", ["dpo", "sepo"])
def test_two_rounds_raise_the_rules_mean(method: str, tmp_path: Path) -> None:
    judged = {"reward_model": "embedded:rule", "max_new_tokens": 64}
    run = pyprefopt.train(
        method=method, on_policy_rounds=2, on_policy=judged, output_dir=str(tmp_path), threads=1, log_level="warning"
    )  # fmt: skip
    rewards = [facts["reward"] for facts in run.summary["rounds"]]
    assert rewards[0] < rewards[1] - 0.02 < rewards[2] - 0.04
