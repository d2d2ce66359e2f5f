from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyprefopt.losses import DPO, SFT, TGDPO, SimPO
from pyprefopt.training.callbacks import NegativeWeights
from pyprefopt.training.evaluation import evaluate
from pyprefopt.training.metrics import TALLY, append_line, averages, drop_lines_after, ranking_margins, tally
from pyprefopt.training.progress import Progress
from pyprefopt.training.step import method_sums
from pyprefopt.types import Outputs
from tests.reference.packing import Group, Response, pack_groups
from tests.training.toy import ToyLoader, ToyModel, dummy_like, make_groups, with_ref_logps


def batch_of(groups):
    return pack_groups(groups).to()


def counts(method, batch, logps):
    sums = method_sums(method, batch, logps)
    return tally(method, batch, method.loss(sums, batch), method.rewards(sums, batch), logps, sums.weights)


def value(totals, name: str) -> float:
    return totals[TALLY.index(name)].item()


def pair(chosen: int, rejected: int, row: int = 0) -> Group:
    return Group([1, 2], [Response([3] * chosen), Response([4] * rejected, kind="rejected")], row=row)


def test_averages_by_hand():
    batch = batch_of([pair(2, 1), pair(1, 3)])
    logps = torch.tensor([-1.0, -3.0, -4.0, -2.0, -1.0, -1.0, -1.0])  # sums: -4 > -4 is a tie; -2 > -3
    metrics = averages(counts(SimPO(beta=1.0, gamma=0.0), batch, logps))
    margins = [-2 - -4, -2 - -1]
    expected = {
        "loss": sum(math.log1p(math.exp(-m)) for m in margins) / 2,
        "rewards/chosen": (-2 + -2) / 2,
        "rewards/rejected": (-4 + -1) / 2,
        "rewards/accuracies": 0.5,
        "rewards/margins": sum(margins) / 2,
        "logps/chosen": (-4 + -2) / 2,
        "logps/rejected": (-4 + -3) / 2,
        "weights/negative": 0.0,
    }
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_a_tied_reward_is_a_miss_and_a_tied_rank_is_half():
    batch = batch_of([pair(2, 2), pair(1, 3)])
    logps = torch.tensor([-1.0, -3.0, -2.0, -2.0, -1.0, -5.0, -1.0, -1.0])  # means: -2, -2; -1, -7/3
    assert averages(counts(SimPO(gamma=0.0), batch, logps))["rewards/accuracies"] == 0.5
    assert ranking_margins(batch, logps).tolist() == pytest.approx([0, 4 / 3])


def test_tallies_add_up_over_any_packing():
    model, groups = ToyModel(), make_groups(7)
    with_ref_logps(groups, ToyModel(seed=3))
    with torch.no_grad():
        whole = counts(DPO(), batch_of(groups), model(batch_of(groups)))
        parts = [batch_of(groups[:2]), batch_of(groups[2:3]), batch_of(groups[3:])]
        added = sum(counts(DPO(), part, model(part)) for part in parts)
    assert torch.allclose(whole, added, rtol=1e-5, equal_nan=True)
    assert whole[TALLY.index("pairs")] == 7
    assert whole[TALLY.index("num_scored_tokens")] == sum(len(r.ids) for g in groups for r in g.responses)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_pairs_without_a_weight_count_whatever_they_are_packed_with(layout):
    weightless, groups = pair(2, 3, row=7), [pair(2, 1), pair(1, 3)]
    for group, weight in ((weightless, 0.0), *((group, 2.0) for group in groups)):
        for response in group.responses:
            response.values["user_weights"] = [weight] * len(response.ids)
    packs = [[weightless, *groups], [weightless]]
    together, alone = (pack_groups(made, layout).to() for made in packs)
    method = SimPO(beta=1.0, gamma=1.0)
    rest = counts(method, pack_groups(groups, layout).to(), torch.full((7,), -2.0))
    totals = counts(method, together, torch.full((7,), -2.0)) - rest
    apart = counts(method, alone, torch.zeros(0))
    for found in (totals, apart):
        assert value(found, "units") == value(found, "pairs") == value(found, "num_weightless") == 1
        assert value(found, "num_tokens") == value(found, "num_scored_tokens") == 0
        assert value(found, "loss") == pytest.approx(math.log1p(math.exp(1.0)))  # margin 0 less gamma
        assert value(found, "rewards/margins") == 0
    assert value(rest, "num_weightless") == 0


def test_the_mean_entropy_is_a_tokens():
    batch = batch_of([pair(2, 1), pair(1, 3)])
    logps, entropy = torch.full((7,), -1.0), torch.arange(7.0)
    assert averages(counts(DPO(), with_ref(batch), Outputs(logps, entropy=entropy)))["entropy"] == 3.0
    assert "entropy" not in averages(counts(DPO(), with_ref(batch), logps))


def with_ref(batch):
    return replace(batch, ref_logps=torch.zeros_like(batch.token_mask))


@pytest.mark.parametrize("method", [DPO(), SFT()])
def test_a_zero_loss_batch_counts_nothing(method):
    batch = dummy_like(batch_of(with_ref_logps(make_groups(1), ToyModel()))).to()
    logps = ToyModel()(batch)
    found = dict(zip(TALLY, counts(method, batch, Outputs(logps, entropy=logps)).tolist(), strict=True))
    assert found.pop("num_computed_tokens") == 1  # its one token goes through the model
    assert set(found.values()) == {0.0}


def test_without_pairs_there_is_only_a_loss():
    batch = batch_of(make_groups(3, single=True))
    logps = ToyModel()(batch)
    metrics = averages(counts(SFT(), batch, logps))
    assert metrics == pytest.approx({"loss": -float(logps.detach().mean()), "weights/negative": 0.0}, rel=1e-6)


def guided() -> tuple:
    """Rewards 3, -3 (chosen) and 3 (rejected): f 2.5, -0.5 and -0.5 at alpha 0.5."""
    group = pair(2, 1)
    group.responses[0].values |= {"token_rewards": [3.0, -3.0], "ref_logps": [-1.0, -1.0]}
    group.responses[1].values |= {"token_rewards": [3.0], "ref_logps": [-1.0]}
    return batch_of([group]), torch.tensor([-1.0, -3.0, -4.0])


@pytest.mark.parametrize(("method", "share"), [(TGDPO(), 2 / 3), (TGDPO(clamp=True), 0), (TGDPO(shape="sigmoid"), 0)])
def test_the_share_of_negative_weights_is_reported(method, share):
    batch, logps = guided()
    assert averages(counts(method, batch, logps))["weights/negative"] == pytest.approx(share)


def test_negative_weights_are_warned_of_once(caplog):
    watcher, progress = NegativeWeights("policy"), Progress(10, 10, step=3)
    for metrics in (None, {"weights/negative": 0.0}, {"weights/negative": 0.25}, {"weights/negative": 0.5}):
        watcher.on_step(progress, metrics)
    (record,) = caplog.records
    assert record.getMessage().startswith("policy: 25.0 % of the token weights of step 3 are negative")


def test_evaluate_needs_no_engine_and_leaves_the_mode():
    model = ToyModel()
    groups = with_ref_logps(make_groups(9), model)
    loader = ToyLoader(groups, batch=4, per_batch=2)
    model.train()
    metrics, margins = evaluate(model, DPO(), loader, ranking=loader)
    assert model.training
    assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["eval_rewards/accuracies"] == 0  # all ties
    with torch.no_grad():
        means = []
        for group in groups:
            batch = batch_of([group])
            logps = model(batch)
            means.append([float(logps[batch.response_index == r].double().mean()) for r in (0, 1)])
    assert metrics["eval_ranking_accuracy"] == sum(a > b for a, b in means) / len(means)
    assert margins is not None
    assert margins.rows.tolist() == list(range(9))
    assert margins.ranking == pytest.approx([a - b for a, b in means], abs=1e-12)
    assert margins.reward == pytest.approx(np.zeros(9), abs=1e-6)


def test_lines_after_a_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_lines_after(path, "policy", 0)  # no file yet: nothing to do
    for stage, step in [("base", 5), ("policy", 0), ("policy", 1), ("policy", 2)]:
        append_line(path, {"stage": stage, "step": step, "loss": 0.1 + 0.2})
    lines = path.read_text().splitlines()
    with path.open("a") as file:
        file.write('{"stage": "policy", "st')  # cut by a kill
    drop_lines_after(path, "policy", 1)
    assert path.read_text().splitlines() == lines[:3]
    drop_lines_after(path, "policy", -1)
    assert [json.loads(line)["stage"] for line in path.read_text().splitlines()] == ["base"]
