"""The final table, and what is said of a training that did not converge."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest

from pyprefopt.pipeline.summary import format_table, log_embedded, summarize
from pyprefopt.settings.config import OptimConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.stages.training import convergence_facts, warn_of_still_loss

COST = {"reused": False, "seconds": 1.0, "peak_memory_bytes": 2**30}
FACTS = {"steps": 12, "train_loss": [0.7, 0.1], "eval_before": {}, "eval_after": {"eval_loss": 0.2}}


@pytest.mark.parametrize(
    ("facts", "title"),
    [
        ({}, "policy, 12 steps  "),
        ({"converged": True}, "policy, 12 steps, converged  "),
        ({"converged": False}, "policy, 12 steps, not converged  "),
    ],
)
def test_the_table_says_how_a_training_ended(facts: dict[str, Any], title: str) -> None:
    stages = {"data": COST | {"train": {"rows": 96}}, "policy": COST | FACTS | facts}
    table = format_table({"method": "dpo", "output_dir": "runs/dpo", "embedded": False, "stages": stages})
    assert any(line.startswith(title) for line in table.splitlines()), table


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, True),
        ({"model": "embedded:tiny", "data": "embedded:toy"}, True),
        ({"model": "m", "data": "embedded:toy"}, False),
        ({"model": "m", "data": "d.jsonl"}, False),
    ],
)
def test_the_embedded_run_says_so_first_and_in_its_table(
    given: dict[str, str], says: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(method="dpo", **given)
    with caplog.at_level(logging.INFO, "pyprefopt"):
        log_embedded(config)
    start = "the embedded run: a tiny model of random weights (embedded:tiny) on a toy set (embedded:toy)"
    assert [message.startswith(start) for message in caplog.messages] == [True] * says
    made: Any = {"policy": SimpleNamespace(reused=False, facts=COST | FACTS)}
    made["data"] = SimpleNamespace(reused=False, facts=COST | {"train": {"rows": 96}})
    assert (start in format_table(summarize(config, made))) is says


@pytest.mark.parametrize(
    ("optim", "steps", "words"),
    [
        ({}, 3, "loss of the last 3 is 0.69, .* over convergence_window 10; raise num_train_epochs, or lower converg"),
        ({}, 30, "loss of the last 10 is 0.69, .* over convergence_window 10; raise num_train_epochs or learning_rate"),
        ({"max_steps": 30}, 30, "loss of the last 10 is 0.69, .*; raise max_steps or learning_rate"),
    ],
)
def test_what_to_do_where_a_training_did_not_converge(
    optim: dict[str, Any], steps: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    job: Any = SimpleNamespace(stage="policy", optim=OptimConfig(until_converged=0.1, **optim))
    result: Any = SimpleNamespace(steps=steps, converged=False, moving_loss=0.69)
    with caplog.at_level(logging.WARNING, "pyprefopt"):
        assert convergence_facts(job, result) == {"converged": False, "moving_loss": 0.69}
    (message,) = caplog.messages
    assert re.search(words, message), message


@pytest.mark.parametrize(
    ("before", "after", "train", "says"),
    [
        (0.6931, 0.6930, None, "did not move in 12 steps (0.6931 before, 0.6930 after)"),
        (0.6931, 0.6931, [0.7, 0.1], "did not move"),  # the test rows decide
        (None, None, [2.0, 2.001], "(2.0000 before, 2.0010 after)"),
        (0.6931, 0.66, None, ""),
        (0.6931, 0.75, None, ""),
        (None, None, [2.0, 1.5], ""),
        (None, None, None, ""),
    ],
)
@pytest.mark.parametrize("stage", ["base", "policy"])
def test_a_loss_that_did_not_move_is_told(
    before: float | None, after: float | None, train: Any, says: str, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    job: Any = SimpleNamespace(stage=stage, optim=OptimConfig(), run=SimpleNamespace(check=False))
    facts = {"steps": 12, "train_loss": train, "eval_before": {"eval_loss": before}, "eval_after": {"eval_loss": after}}
    warn_of_still_loss(job, facts)
    assert len(caplog.messages) == bool(says)
    if says:
        assert says in caplog.text
        assert f"raise {'base.' if stage == 'base' else ''}learning_rate (5e-07)" in caplog.text
    caplog.clear()
    job.run.check = True
    warn_of_still_loss(job, facts)
    assert not caplog.messages
