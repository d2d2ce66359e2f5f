import math
from dataclasses import replace

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, TGDPO
from tests.losses.pairs import assert_like_reference, batch_of, losses, random_pairs
from tests.reference import losses as reference
from tests.reference.losses import Response


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(("shape", "clamp"), [("linear", False), ("linear", True), ("sigmoid", False)])
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_like_reference(dtype, select, shape, clamp, alpha):
    method = TGDPO(beta=0.3, alpha=alpha, shape=shape, clamp=clamp)
    assert_like_reference(
        method,
        lambda chosen, rejected: reference.tgdpo(chosen, rejected, 0.3, alpha, shape, clamp),
        dtype,
        select=select,
    )


@pytest.mark.parametrize("shape", ["linear", "sigmoid"])
def test_without_guidance_it_is_dpo(shape):
    batch, logps = batch_of(random_pairs(3, select=True), torch.float64)
    assert torch.equal(losses(TGDPO(alpha=0.0, shape=shape), batch, logps), losses(DPO(), batch, logps))


def test_only_the_product_of_alpha_and_the_rewards_scale_matters():
    batch, logps = batch_of(random_pairs(3), torch.float64)
    halved = replace(batch, token_rewards=batch.token_rewards / 2)
    torch.testing.assert_close(
        losses(TGDPO(alpha=1.0), halved, logps), losses(TGDPO(alpha=0.5), batch, logps), rtol=1e-12, atol=0
    )


def worked() -> tuple:
    """Log-ratios 1, 1 (rewards 1, -1) against 2 (reward 0.5)."""
    chosen = Response([-1.0, -1.0], [-2.0, -2.0], [True] * 2, rewards=[1.0, -1.0])
    return batch_of([(chosen, Response([-1.0], [-3.0], [True], rewards=[0.5]))], torch.float64)


@pytest.mark.parametrize(
    ("settings", "margin"),
    [
        ({"alpha": 0.5}, 1.5 + 0.5 - 2 * 0.75),
        ({"alpha": 2.0}, 3 - 1 - 2 * 0.0),
        ({"alpha": 2.0, "clamp": True}, 3 + 0 - 2 * 0.0),
        ({"alpha": 1.0, "shape": "sigmoid"}, 2 - 2 * 2 / (1 + math.exp(0.5))),  # sigmoid(1) + sigmoid(-1) = 1
    ],
)
def test_worked_by_hand(settings, margin):
    got = losses(TGDPO(beta=1.0, **settings), *worked()).item()
    assert got == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-12)


CUSTOM = """
import torch

def by_length(token_rewards, response_length, side):
    return 1 + side * token_rewards / response_length

steep = 3
"""


@pytest.fixture
def custom(tmp_path):
    file = tmp_path / "shapes.py"
    file.write_text(CUSTOM)
    return file


def test_a_function_of_ones_own(custom):
    """Weights 1 + 1/2, 1 - 1/2 and 1 - 0.5/1."""
    got = losses(TGDPO(beta=1.0, shape=f"{custom}:by_length"), *worked()).item()
    assert got == pytest.approx(math.log1p(math.exp(-(1.5 + 0.5 - 2 * 0.5))), rel=1e-12)


def test_the_factor_of_the_rewards(custom):
    assert TGDPO(alpha=0.7).reward_factor == 0.7
    assert TGDPO(shape=f"{custom}:by_length").reward_factor is None


def test_the_functions_content_is_part_of_what_the_loss_is(custom):
    method = TGDPO(shape=f"{custom}:by_length")
    before = method.content
    assert before["shape"].startswith("by_length of ")
    custom.write_text(CUSTOM + "# another\n")
    assert method.content != before
    assert TGDPO().content == {"shape": "linear"}


def test_a_changed_function_is_read_again(custom):
    batch, logps = worked()
    before = TGDPO(shape=f"{custom}:by_length").token_weights(batch, logps)
    custom.write_text(CUSTOM.replace("1 + side", "2 + side"))
    assert torch.equal(TGDPO(shape=f"{custom}:by_length").token_weights(batch, logps), before + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, r"loss\.alpha must be >= 0 and finite, got -1\.0"),
        ({"beta": 0.0}, r"loss\.beta must be > 0"),
        ({"shape": "linaer"}, r"loss\.shape must be one of linear, sigmoid, .*did you mean 'linear'"),
        ({"shape": "nowhere.py:f"}, r"loss\.shape must name an existing file, got 'nowhere\.py'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        TGDPO(**settings)


@pytest.mark.parametrize("name", ["missing", "steep"])
def test_a_shape_must_be_a_function(custom, name):
    with pytest.raises(ConfigError, match=f"has no (function )?'{name}'"):
        TGDPO(shape=f"{custom}:{name}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(r, n, side:\n", r"the file must run, got SyntaxError: .* \(line 1\); mend it$"),
        ("x = 1\nimport nothing_like_it\n", r"the file must run, got ModuleNotFoundError: .* \(line 2\); mend it$"),
        ("raise SystemExit(3)\n", r"the file must run, got SystemExit: 3 \(line 1\); mend it$"),
        ("def f(r):\n    return r\n", r"must be a function f\(token_rewards, response_length, side\), got TypeError: "),
        ("def f(r, n, side):\n    return r @ side[:2]\n", r"side\), got RuntimeError: .* \(line 2\); mend it$"),
        ("def f(r, n, side):\n    return 1.0\n", r"a tensor of shape \[5\], got 1\.0; return one as long as token_rew"),
        ("def f(r, n, side):\n    return r[:, None]\n", r"a tensor of shape \[5\], got shape \[5, 1\]; return one"),
        ("def f(r, n, side):\n    return r[1:]\n", r"a tensor of shape \[5\], got shape \[4\]; return one"),
    ],
)
def test_a_shapes_mistakes_are_reported_when_it_is_named(tmp_path, source, message):
    file = tmp_path / "shapes.py"
    file.write_text(source)
    with pytest.raises(ConfigError, match=rf"^loss\.shape '{file}:f'.*{message}") as raised:
        TGDPO(shape=f"{file}:f")
    assert "\n" not in str(raised.value)


def test_a_shape_is_checked_at_each_call(tmp_path):
    file = tmp_path / "shapes.py"
    file.write_text("def five(r, n, side):\n    return 1 + 0 * r[:5].new_ones(5)\n")
    with pytest.raises(ConfigError, match=r"a tensor of shape \[3\], got shape \[5\]"):
        losses(TGDPO(shape=f"{file}:five"), *worked())
