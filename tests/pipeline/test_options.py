"""Selection, truncation and user weights with every method, through the data path: each does something, or is refused.

`tests/training/test_loss_options.py` takes steps with all their combinations on batches made by hand.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from pyprefopt.data.embedded import write_candidates
from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS, count_units
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.stages.training import Training
from pyprefopt.training.step import method_sums
from tests.losses.pairs import REQUIRED
from tests.modeling.models import shake
from tests.pipeline.runs import small

OPTIONS: dict[str, dict[str, Any]] = {
    "selection": {"selection": {"method": "random", "chosen_ratio": 0.3, "rejected_ratio": 0.5}},
    "truncation": {"truncation": {"ratio": 0.5}},
    "user_weights": {},  # columns of the data, and no setting
}
REFUSED = {
    ("sft", "selection"): "trains on whole responses",
    ("rrhf", "selection"): "trains on candidates",
    ("reward", "selection"): "trains a score of whole responses",
    ("reward", "user_weights"): "weighs no token",
}
SPAN = pl.Struct({"start": pl.Int64, "end": pl.Int64, "weight": pl.Float64})


class Told(Exception):  # noqa: N818
    """Ends a run before its training: holds what would have been trained."""


class Runs(Pipeline):
    """A pipeline that trains nothing."""

    def run(self, stage: Stage) -> Artifact:
        if isinstance(stage, Training):
            raise Told(stage)
        return super().run(stage)


@pytest.fixture(scope="module")
def loss_of(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Loss and gradient of a method's first step with some options, at weights that are not the reference's."""
    shared = tmp_path_factory.mktemp("shared")
    pairs = pl.read_parquet(inputs / "train.parquet").head(8)
    sets = pl.read_parquet(write_candidates(shared, train=8, test=8)[0])
    weights = [{"start": 0, "end": 9, "weight": 3.0}]
    of_pairs = [
        pl.Series(f"{side}_weights", [weights] * pairs.height, pl.List(SPAN)) for side in ("chosen", "rejected")
    ]
    of_sets = pl.Series("responses_weights", [[weights, None, [], None]] * sets.height, pl.List(pl.List(SPAN)))
    for name, frame in (("pairs", pairs), ("candidates", sets)):
        frame.write_parquet(shared / f"{name}.parquet")
        frame.with_columns(of_pairs if name == "pairs" else of_sets).write_parquet(shared / f"{name}_weighted.parquet")

    @cache
    def loss(
        method: str, *options: str, layout: str = "shared", groups: int | None = None
    ) -> tuple[float, torch.Tensor]:
        rows = "candidates" if METHODS[method].trains_on == "candidates" else "pairs"
        data = shared / f"{rows}{'_weighted' if 'user_weights' in options else ''}.parquet"
        settings: dict[str, Any] = {
            "method": method, "loss": REQUIRED.get(method, {}), "data": str(data), "eval_data": None, "eval_ratio": 0.0,
            "base": {}, "oracle": {}, "policy_init": "model", "layout": layout, "max_tokens_per_batch": 4096,
            "per_device_train_batch_size": groups,
        }  # fmt: skip
        if METHODS[method].trains_on == "responses":
            settings["policy_init"] = None
        if "token_rewards" in METHODS[method].needs:
            settings["rewards"] = {"name": "random"}
        if method == "sepo":  # it selects by itself; 1 is without
            settings["selection"] = {"method": "random", "chosen_ratio": 1.0, "rejected_ratio": 1.0}
        for option in options:
            settings |= OPTIONS[option]
        config = small(inputs, shared / "run", **settings)
        with pytest.raises(Told) as told:
            _ = Runs(config, shared / "stages").policy
        training: Training = told.value.args[0]
        torch.manual_seed(0)
        model = training.open_model(config)
        shake(model)
        total, units = torch.zeros(()), torch.zeros(())
        batches = training.train_loader(config).step(0)
        assert (len(batches) > 1) == (groups is not None)
        for batch in batches:
            values = training.method.loss(method_sums(training.method, batch, model(batch)), batch)
            total, units = total + values.sum(), units + count_units(training.method.unit, batch)
        mean = total / units
        gradients = torch.autograd.grad(mean, [p for p in model.parameters() if p.requires_grad])
        return mean.item(), torch.cat([g.flatten() for g in gradients])

    return loss


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_option_changes_the_loss_or_is_refused(name: str, option: str, loss_of: Any) -> None:
    if (name, option) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name, option]):
            loss_of(name, option)
        return
    assert loss_of(name, option)[0] != pytest.approx(loss_of(name)[0], rel=1e-4)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_all_that_go_with_a_method_go_together(name: str, loss_of: Any) -> None:
    allowed = [option for option in OPTIONS if (name, option) not in REFUSED]
    together, _ = loss_of(name, *allowed)
    for left_out in allowed[: len(allowed) * (len(allowed) > 1)]:
        assert together != pytest.approx(loss_of(name, *(o for o in allowed if o != left_out))[0], rel=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_packing_changes_neither_loss_nor_gradient(name: str, loss_of: Any) -> None:
    """One micro-batch or several, the prompt once or with every response, with all options that the method has."""
    allowed = [option for option in OPTIONS if (name, option) not in REFUSED]
    loss, gradient = loss_of(name, *allowed)
    for packing in ({"layout": "separate"}, {"groups": 3}, {"layout": "separate", "groups": 1}):
        other_loss, other_gradient = loss_of(name, *allowed, **packing)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert (other_gradient - gradient).norm() < 1e-4 * gradient.norm()
