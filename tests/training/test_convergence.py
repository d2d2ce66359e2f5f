"""`until_converged`: training ends once the moving average of the loss is below it."""

from __future__ import annotations

import math

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.settings.resolve import configure
from pyprefopt.training.metrics import TALLY
from pyprefopt.training.progress import Progress
from pyprefopt.training.trainer import HeldOut, Job, fit
from tests.training.test_trainer import GROUPS, lines, losses, make_job
from tests.training.toy import ToyLoader

LONG = {"num_train_epochs": 30.0, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}


def first_below(values: list[float], threshold: float, window: int) -> int:
    """The step after which the mean of the last `window` losses is below: the definition, as a loop."""
    for step in range(window, len(values) + 1):
        if sum(values[step - window : step]) / window < threshold:
            return step
    raise AssertionError("never below")


@pytest.mark.parametrize("window", [1, 4])
def test_ends_at_the_first_step_whose_window_is_below(tmp_path, window):
    fit(make_job(tmp_path / "whole", **LONG))
    expected = first_below(losses(tmp_path / "whole"), 0.5, window)
    assert window < expected < 90
    result = fit(make_job(tmp_path / "ended", **LONG, until_converged=0.5, convergence_window=window))
    assert result.steps == expected
    assert result.converged
    assert result.moving_loss < 0.5
    assert losses(tmp_path / "ended") == losses(tmp_path / "whole")[:expected]  # nothing else has changed


def test_the_last_step_is_logged_and_evaluated(tmp_path):
    job = make_job(tmp_path, **LONG, until_converged=0.5, convergence_window=2, logging_steps=1000)
    held_out = ToyLoader(GROUPS[:5], batch=5, per_batch=2)
    result = fit(Job(**{**job.__dict__, "tests": {"eval": HeldOut(held_out, held_out)}}))
    assert [line["step"] for line in lines(tmp_path)] == [0, result.steps, result.steps]
    assert result.eval_after != result.eval_before


def test_the_limit_holds_where_it_is_never_reached(tmp_path):
    result = fit(make_job(tmp_path, until_converged=1e-9, convergence_window=2))
    assert result.steps == 6
    assert not result.converged
    assert result.moving_loss == pytest.approx(sum(losses(tmp_path)[-2:]) / 2)


def test_without_it_nothing_ends_early(tmp_path):
    result = fit(make_job(tmp_path, **{**LONG, "num_train_epochs": 20.0}))
    assert result.steps == 60
    assert not result.converged


@pytest.mark.parametrize("saved", [5, 10])
def test_a_killed_training_ends_at_the_same_step(tmp_path, monkeypatch, saved):
    """The window goes into the checkpoint; without it, a resumed run would need a whole new one."""
    settings = {**LONG, "until_converged": 0.5, "convergence_window": 7}
    whole = fit(make_job(tmp_path / "whole", **settings))
    assert whole.steps > saved
    advance = Progress.advance

    def die(progress, *arguments):
        advance(progress, *arguments)
        if progress.step == saved + 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", die)
    with pytest.raises(KeyboardInterrupt):
        fit(make_job(tmp_path / "killed", **settings, save_steps=saved))
    monkeypatch.setattr(Progress, "advance", advance)
    resumed = fit(make_job(tmp_path / "killed", **settings, save_steps=saved))
    assert resumed.steps == whole.steps
    assert resumed.moving_loss == whole.moving_loss
    for name, value in whole.weights.items():
        assert torch.equal(resumed.weights[name], value)


def test_a_run_killed_after_its_last_step_does_no_more(tmp_path):
    settings = {**LONG, "until_converged": 0.5, "convergence_window": 1, "save_steps": 1}
    first = fit(make_job(tmp_path, **settings))
    again = fit(make_job(tmp_path, **settings))
    assert again.steps == first.steps
    assert again.converged


def step_of(loss: float, units: float = 4.0) -> torch.Tensor:
    totals = torch.zeros(len(TALLY), dtype=torch.float64)
    totals[TALLY.index("loss")], totals[TALLY.index("units")] = loss * units, units
    return totals


def test_the_moving_average_by_hand():
    progress = Progress(100, 10, until_converged=0.5, window=3)
    assert math.isnan(progress.moving_loss)
    seen = []
    for loss in (0.1, 0.2, 1.2, 0.6, 0.0, 0.3):
        progress.advance(step_of(loss), 1.0, 1e-3, {})
        seen.append((round(progress.moving_loss, 12), progress.done))
    assert seen == [
        (0.1, False), (0.15, False),  # below, but not a whole window
        (0.5, False),  # below means below
        (round(2 / 3, 12), False), (0.6, False), (0.3, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"until_converged": math.nan}, ["until_converged", "nan", "finite"]),
        ({"until_converged": -1.0}, ["until_converged must be a loss > 0", "-1.0"]),
        ({"until_converged": 0.1, "max_steps": 3}, ["convergence_window must be <= max_steps", "raise max_steps"]),
        ({"oracle": {"until_converged": 0.1, "max_steps": 3}}, ["convergence_window must be <= max_steps"]),
        ({"until_converged": 0.1, "convergence_window": 0}, ["convergence_window", "0", "> 0"]),
        ({"convergence_window": 5}, ["convergence_window", "until_converged"]),
        ({"base": {"until_converged": math.inf}}, ["base.until_converged", "inf"]),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(ConfigError) as raised:
        configure(method="sepo", **settings)
    for word in words:
        assert word in str(raised.value)
