"""What has no weight is not computed, and nothing else changes: every method through a real model, in both layouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.losses import METHODS
from pyprefopt.modeling import ReferencedModel
from pyprefopt.training.metrics import TALLY, tally
from pyprefopt.training.step import method_sums
from pyprefopt.types import Outputs, PackedBatch
from tests.data.segments import frame
from tests.losses.pairs import made
from tests.modeling.models import VOCAB, packed_model
from tests.reference.packing import Group, Response

ON_TOKENS = sorted(name for name, method in METHODS.items() if "reward_head" not in method.needs)
SHARE = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "units", "pairs"}  # of a tally


def make_rows(trains_on: str, count: int = 5) -> list[Group]:
    """Weights of 0 at the end, at the start, in the middle, in a whole response, in all of row 1 and of row 4."""
    rng = np.random.default_rng(0)
    kinds = {"pairs": ("chosen", "rejected"), "candidates": ("response",) * 3, "responses": ("response",)}[trains_on]

    def response(row: int, number: int, kind: str) -> Response:
        length = int(rng.integers(4, 12))
        weights = rng.choice([0.0, 0.5, 1.0, 2.0], length)
        weights[-2 - row % 2 :] = 0
        if row in (1, 4) or (row == 2 and number == 0):
            weights[:] = 0
        values = {"user_weights": weights, "token_rewards": rng.normal(0, 1, length), "ref_logps": -rng.random(length)}
        selected = (rng.random(length) < 0.7).tolist()
        return Response(
            rng.integers(0, VOCAB, length).tolist(), selected=selected, kind=kind, score=float(rng.normal()),
            values={name: value.tolist() for name, value in values.items()},
        )  # fmt: skip

    return [
        Group(rng.integers(0, VOCAB, 3 + row).tolist(), [response(row, i, kind) for i, kind in enumerate(kinds)], row)
        for row in range(count)
    ]


def packs(rows: list[Group], layout: str, *, cut: bool, selection: bool, max_tokens: int = 60) -> list[PackedBatch]:
    table = frame(rows) if selection else frame(rows).drop("selected")
    values = {name: table[name] for name in ("user_weights", "token_rewards", "ref_logps")}
    ratios = {"chosen_ratio": 0.7, "rejected_ratio": 0.7} if selection else {}
    packer = Packer(
        SegmentStore.from_frame(table), layout=layout, selected=table["selected"] if selection else None,
        keep_unweighted=not cut, **values, **ratios,
    )  # fmt: skip
    return [batch.to() for batch in packer.pack(max_tokens=max_tokens)]


def run(name: str, batches: list[PackedBatch]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The tally over all batches, and the gradient of the summed loss."""
    method, policy = made(name), packed_model("llama", dtype="float64")
    model = policy
    if "ref_kl" in method.needs:
        model = ReferencedModel(policy.model, packed_model("llama", dtype="float64", seed=4))
    totals = torch.zeros(len(TALLY), dtype=torch.float64)
    for batch in batches:
        torch.manual_seed(0)
        outputs = Outputs.of(model(batch))
        sums = method_sums(method, batch, outputs)
        losses = method.loss(sums, batch)
        losses.sum().backward()
        totals += tally(method, batch, losses, method.rewards(sums, batch), outputs, sums.weights)
    gradients = {key: p.grad for key, p in policy.named_parameters() if p.grad is not None}
    return dict(zip(TALLY, totals.tolist(), strict=True)), gradients


@pytest.mark.parametrize("selection", [False, True], ids=["all", "selected"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("name", ON_TOKENS)
def test_loss_and_gradients_are_those_without_the_cut(name: str, layout: str, selection: bool) -> None:
    rows, method = make_rows(METHODS[name].trains_on), METHODS[name]
    whole = packs(rows, layout, cut=False, selection=selection)
    cut = packs(rows, layout, cut=not method.reads_unweighted, selection=selection)
    (expected, theirs), (found, ours) = run(name, whole), run(name, cut)
    for key in SHARE:
        assert found[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-9), key
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).norm() <= 1e-9 * max(1.0, gradient.norm().item()), key
    assert max(gradient.norm().item() for gradient in theirs.values()) > 1e-3
    if name == "confpo":  # reads every token's probability
        assert found["num_tokens"] == expected["num_tokens"]
    else:
        assert found["num_weightless"] == (3 if method.trains_on == "responses" else 2)
        assert found["num_tokens"] < expected["num_tokens"]
        assert found["num_scored_tokens"] < expected["num_scored_tokens"]


def test_positions_are_those_without_the_cut() -> None:
    """Rotary positions, places in the response and lengths: all as in the whole response."""
    (whole,), (cut,) = (
        packs(make_rows("pairs"), "shared", cut=cut, selection=False, max_tokens=1000) for cut in (0, 1)
    )
    kept = whole.user_weights != 0
    assert torch.equal(whole.position_ids[whole.hidden_index][kept], cut.position_ids[cut.hidden_index])
    for name in ("target_ids", "token_position", "response_index", "user_weights", "token_rewards", "ref_logps"):
        assert torch.equal(getattr(whole, name)[kept], getattr(cut, name)), name
    for name in ("response_length", "scored_length", "response_row", "pair_chosen", "pair_rejected", "response_group"):
        assert torch.equal(getattr(whole, name), getattr(cut, name)), name


def test_a_step_of_weightless_rows_has_a_loss_and_no_gradient() -> None:
    rows = [replace(row, row=number) for number, row in enumerate((make_rows("pairs")[1], make_rows("pairs")[4]))]
    batches = packs(rows, "shared", cut=True, selection=False)
    assert [len(batch.input_ids) for batch in batches] == [1]
    found, gradients = run("dpo", batches)
    assert found["loss"] == pytest.approx(2 * np.log(2))
    assert found["units"] == found["num_weightless"] == 2
    assert all(not gradient.any() for gradient in gradients.values())
