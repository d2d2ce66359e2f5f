"""Selection, truncation and user weights with every method: each pair works and does something, or is refused."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.settings.resolve import configure
from tests.losses.pairs import REQUIRED, made, sums_of
from tests.reference.packing import Group, Response, pack_groups
from tests.training.toy import ToyModel, make_groups, with_ref_logps

OPTIONS = ("selection", "truncation", "user_weights")
COMBINATIONS = [c for size in range(len(OPTIONS) + 1) for c in combinations(OPTIONS, size)]
ON_TOKENS = sorted(name for name, method in METHODS.items() if "reward_head" not in method.needs)
# What is refused, and a word of the reason. Everything else works.
REFUSED = {
    ("sft", "selection"): "trains on whole responses",
    ("rrhf", "selection"): "trains on candidates",
}
RATIO = 0.5


def settings_of(name: str, options: tuple[str, ...]) -> dict:
    """The run's settings. User weights are columns of the data and no setting."""
    settings: dict = {"method": name, "loss": REQUIRED.get(name, {})}
    if "selection" in options:
        settings["selection"] = {"chosen_ratio": RATIO, "rejected_ratio": RATIO}
    elif name == "sepo":  # it selects by itself; 1 is without
        settings["selection"] = {"chosen_ratio": 1.0, "rejected_ratio": 1.0}
    if "truncation" in options:
        settings["truncation"] = {"ratio": RATIO}
    return settings


def groups_of(name: str) -> list[Group]:
    """What the method trains on: pairs, single responses, or candidates with scores."""
    on = METHODS[name].trains_on
    groups = make_groups(6, seed=3, single=on == "responses")
    if on == "candidates":
        for i, group in enumerate(groups):
            group.responses.append(Response(make_groups(1, seed=50 + i)[0].responses[0].ids))
            for score, response in enumerate(group.responses):
                response.kind, response.score = "response", float(score)
    with_ref_logps(groups, ToyModel(seed=7))
    rng = np.random.default_rng(0)
    for response in (r for group in groups for r in group.responses):
        response.values["token_rewards"] = rng.normal(size=len(response.ids)).tolist()
    return groups


def batch_of(name: str, options: tuple[str, ...]):
    """The groups as the data path hands them over: cut, then selected, with weights carried along."""
    groups = groups_of(name)
    rng = np.random.default_rng(1)
    for response in (r for group in groups for r in group.responses):
        length = len(response.ids)
        weights, marks = rng.uniform(0, 2, length), rng.permutation(length)
        if "user_weights" in options:
            response.values["user_weights"] = weights.tolist()
        if "truncation" in options:
            length = -(-length // 2)
            response.ids = response.ids[:length]
            response.values = {key: values[:length] for key, values in response.values.items()}
        if "selection" in options:
            kept = {t for t in marks.tolist() if t < length}
            kept = set(sorted(kept, key=marks.tolist().index)[: max(1, int(RATIO * length + 0.5))])
            response.selected, response.ratio = [t in kept for t in range(length)], RATIO
    return pack_groups(groups).to()


def one_step(name: str, options: tuple[str, ...]) -> float:
    """The loss of one optimizer step, which must have moved the model to something finite."""
    model, method, batch = ToyModel(), made(name), batch_of(name, options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    loss = method.loss(sums_of(method, batch, model(batch)), batch).sum()
    loss.backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    return loss.item()


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda c: "+".join(c) or "none")
@pytest.mark.parametrize("name", ON_TOKENS)
def test_every_pair_works_and_does_something_or_is_refused(name, options):
    reasons = [REFUSED[name, option] for option in options if (name, option) in REFUSED]
    if reasons:
        with pytest.raises(ConfigError, match=reasons[0]):
            configure(**settings_of(name, options))
        return
    config = configure(**settings_of(name, options))
    assert config.selection.ratios == ((RATIO, RATIO) if "selection" in options else config.selection.ratios)
    assert config.truncation.ratio == (RATIO if "truncation" in options else None)
    loss = one_step(name, options)
    for option in options:
        assert loss != one_step(name, tuple(other for other in options if other != option))
