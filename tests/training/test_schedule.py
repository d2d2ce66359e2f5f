from __future__ import annotations

import math

import pytest

from pyprefopt.settings.config import OptimConfig
from pyprefopt.training.schedule import learning_rate, total_steps


def rates(total: int, **settings) -> list[float]:
    optim = OptimConfig(learning_rate=8.0, **settings)
    return [learning_rate(step, total, optim) for step in range(total)]


def test_linear_with_warm_up_by_hand():
    # 3 of 7 steps rise by 1/4 of the peak each, then 4 steps fall from the peak by 1/4 each
    assert rates(7, lr_scheduler_type="linear", warmup_ratio=0.4) == [2, 4, 6, 8, 6, 4, 2]


def test_constant_with_and_without_warm_up():
    assert rates(4, lr_scheduler_type="constant", warmup_ratio=0.25) == [4, 8, 8, 8]
    assert rates(3, lr_scheduler_type="constant", warmup_ratio=0.0) == [8, 8, 8]


def test_cosine_by_hand():
    expected = [8, 8 * (1 + math.sqrt(0.5)) / 2, 4, 8 * (1 - math.sqrt(0.5)) / 2]
    assert rates(4, lr_scheduler_type="cosine", warmup_ratio=0.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_after_the_warm_up_as_transformers(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    total, warmup = 50, 5
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=8.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    ours = rates(total, lr_scheduler_type=kind, warmup_ratio=0.1)
    assert ours[warmup:] == pytest.approx(expected[warmup:], rel=1e-12)
    assert ours[0] > expected[0] == 0  # their first step is spent on a rate of 0


@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_no_step_has_rate_zero(total):
    assert min(rates(total, warmup_ratio=0.03)) > 0


def test_total_steps():
    assert total_steps(OptimConfig(num_train_epochs=2), 7) == 14
    assert total_steps(OptimConfig(num_train_epochs=0.5), 7) == 4
    assert total_steps(OptimConfig(num_train_epochs=1.1), 30) == 33
    assert total_steps(OptimConfig(num_train_epochs=0.01), 7) == 1
    assert total_steps(OptimConfig(max_steps=3), 7) == 3
