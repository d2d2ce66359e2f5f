"""What is random in training, or is computed otherwise there, is found by running and stays in evaluation."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model
from pyprefopt.modeling.steady import find_unsteady, keep_in_evaluation
from tests.modeling.made_up import made_up
from tests.modeling.models import _GROUPED, eager_twin, make_groups, plain_logps, shake, write_config
from tests.reference.packing import pack_groups

# Small noise that hardly shows, and noise under names that say nothing of dropout.
NOISY: dict[str, tuple[dict[str, Any], str]] = {
    "phimoe": (
        {**_GROUPED, "model_type": "phimoe", "num_local_experts": 4, "router_jitter_noise": 0.01}, "PhimoeTopKRouter"
    ),
    "phimoe's inputs": (
        {
            **_GROUPED, "model_type": "phimoe", "num_local_experts": 4, "router_jitter_noise": 0.2,
            "input_jitter_noise": 1e-4,
        },
        "PhimoeSparseMoeBlock, PhimoeTopKRouter",
    ),
    "mixtral": (
        {**_GROUPED, "model_type": "mixtral", "num_local_experts": 4, "router_jitter_noise": 1e-3},
        "MixtralSparseMoeBlock",
    ),
    "a model of random layers": (made_up("is random in training"), "MadeUpModel"),
    "one that is random with a gradient alone": (made_up("is random with a gradient"), "MadeUpModel"),
    "rarely random": (made_up("is rarely random in training"), "MadeUpModel"),
    "random by another generator": (made_up("is random by another generator"), "MadeUpModel"),
    "other numbers, by design": (made_up("computes otherwise in training"), "MadeUpModel"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
def test_training_computes_what_users_compute(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, kept = NOISY[name]
    with caplog.at_level(logging.WARNING):
        model = load_model(write_config(tmp_path, settings))
    assert f"layers ({kept}) compute something else in training than in evaluation" in caplog.text
    shake(model)
    engine, batch = LogpsModel(model).train(), pack_groups(make_groups()).to()
    first = engine(batch)
    first.sum().backward()
    assert engine.training
    assert torch.equal(engine(batch), first)
    assert (first - plain_logps(eager_twin(model), make_groups())).abs().max() < 2e-5
    assert torch.equal(engine.eval()(batch), first)
    assert all(p.grad is not None for n, p in model.named_parameters() if "router" in n)


def test_a_remembered_proof_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYPREFOPT_CACHE", str(tmp_path / "cache"))
    config = write_config(tmp_path, NOISY["phimoe"][0])
    for _ in range(2):
        model = load_model(config).train()
        kept = [module for module in model.modules() if not module.training]
        assert [type(module).__name__ for module in kept] == ["PhimoeTopKRouter"] * 2
    for file in (tmp_path / "cache" / "proofs").iterdir():
        file.write_text("[" * 100_000)  # it is proved again
    load_model(config)


def test_the_weights_decide_where_no_tiny_copy_runs(tmp_path: Path) -> None:
    config = write_config(tmp_path, made_up("is random in training", needs_room=True))
    model = load_model(config).train()
    assert not model.model.training
    assert model.model.layers[0].training


def test_what_is_random_in_evaluation_too_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MadeUpForCausalLM .*use a model of another architecture"):
        load_model(write_config(tmp_path, made_up("is always random")))


def test_dropout_of_adapters_stays(tmp_path: Path) -> None:
    lora = SimpleNamespace(r=4, alpha=8, dropout=0.5, target_modules=())
    engine = LogpsModel(load_model(write_config(tmp_path, NOISY["mixtral"][0]), lora=lora)).train()  # type: ignore[arg-type]
    shake(engine)
    batch = pack_groups(make_groups()).to()
    assert not torch.equal(engine(batch), engine(batch))
    assert torch.equal(engine.eval()(batch), engine(batch))


class Noise(nn.Module):
    """Adds noise where `on` says so."""

    def __init__(self, on: str) -> None:
        super().__init__()
        self.on, self.weight = on, nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.weight
        return x + torch.randn_like(x) if self.on == "training" and self.training else x


class Kind(Noise):
    """Noise of another class."""


def test_as_few_as_will_do() -> None:
    model = nn.Sequential(Noise("never"), nn.Sequential(Kind("training"), nn.Linear(3, 3), nn.Dropout(0.5)))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = find_unsteady(model, lambda: model(torch.ones(2, 3)))
    assert found == {"Kind", "Dropout"}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert keep_in_evaluation(model, found) == keep_in_evaluation(model, found) == 2
    model.train()
    assert [type(m).__name__ for m in model.modules() if not m.training] == ["Kind", "Dropout"]
    assert isinstance(model[1][0], Kind)
    assert torch.equal(model(torch.ones(2, 3)), model(torch.ones(2, 3)))
    assert not find_unsteady(nn.Sequential(nn.Linear(3, 3)), lambda: model(torch.ones(2, 3)))
