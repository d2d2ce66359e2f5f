"""Rates against what is counted by hand."""

from __future__ import annotations

import json

import pytest
import torch

from pyprefopt.losses import SimPO
from pyprefopt.modeling.cost import Flops
from pyprefopt.settings.resolve import configure
from pyprefopt.training.metrics import TALLY, useful_tokens
from pyprefopt.training.throughput import PEAKS, Throughput, known_peak, peak_tflops
from pyprefopt.training.trainer import fit
from pyprefopt.training.usage import peak_memory
from tests.reference.packing import Group, Response, pack_groups
from tests.training.test_trainer import make_job

GROUPS = [
    Group([1, 2, 3], [Response([4] * 5), Response([5] * 2, kind="rejected")]),
    Group([6], [Response([7] * 2, selected=[True, False]), Response([8] * 4, kind="rejected")], row=1),
]


def test_useful_tokens_are_the_same_in_both_layouts():
    """Prompts of 3 and 1 once, responses up to the input that predicts their last scored token."""
    shared, separate = (pack_groups(GROUPS, layout).to() for layout in ("shared", "separate"))
    tokens = 3 + 4 + 1 + 1 + 0 + 3
    seen = sum([1, 2, 3], sum([4, 5, 6, 7], 4)) + 1 + sum([2, 3, 4])
    assert useful_tokens(shared).tolist() == [tokens, seen]
    assert useful_tokens(separate).tolist() == [tokens, seen]
    assert separate.input_ids.numel() == tokens + 3 + 1  # the prompts again


@pytest.mark.parametrize("dead", [0, 1])
def test_a_response_of_weight_0_has_no_prompt_that_is_repeated(dead):
    def response(ids, at):
        return Response(ids, kind=("chosen", "rejected")[at], values={"user_weights": [float(at != dead)] * len(ids)})

    groups = [Group([1] * 10, [response([4] * 5, 0), response([5] * 4, 1)], row=row) for row in range(2)]
    shared, separate = (pack_groups(groups, layout).to() for layout in ("shared", "separate"))
    assert useful_tokens(separate).tolist() == useful_tokens(shared).tolist()
    assert useful_tokens(separate)[0] == separate.input_ids.numel()


def test_a_batch_without_a_scored_token_has_no_useful_one():
    batch = pack_groups([Group([1], [Response([2], selected=[False])])]).to()
    assert useful_tokens(batch).tolist() == [0, 0]


def totals(**values: float) -> torch.Tensor:
    return torch.tensor([values.get(name, 0.0) for name in TALLY], dtype=torch.float64)


STEP = totals(num_computed_tokens=100, num_useful_tokens=80, num_useful_context=1000, num_scored_tokens=30)


def test_rates_by_hand(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    speed = Throughput(Flops(token=6e9, context=2e6, scored=1e9), peak=0.5)
    rates = speed.add(STEP, 4.0)
    assert rates.pop("peak_memory_gib") * 2**30 == pytest.approx(peak_memory())
    needed = 80 * 6e9 + 1000 * 2e6 + 30 * 1e9
    expected = {"tokens_per_second": 25, "useful_tokens_per_second": 20, "padding_share": 0.2}
    assert rates == pytest.approx({**expected, "mfu": needed / (4 * 2 * 0.5e12)})
    speed.add(STEP, 6.0)
    assert speed.line().startswith("200 tokens in 10.0 s, 20 tokens/s, 16 useful, padding 20.0 %, MFU 10.2 %, peak mem")


@pytest.mark.parametrize(
    ("flops", "peak", "reason"),
    [("it is no transformers model", 1.0, "it is no"), (Flops(1, 1, 1), "give peak_tflops", "give peak_tflops")],
)
def test_mfu_is_left_out_with_the_reason(flops, peak, reason):
    speed = Throughput(flops, peak)
    assert speed.line() == "no step was taken"
    assert "mfu" not in speed.add(STEP, 1.0)
    assert "MFU" not in speed.line()
    assert speed.unknown.startswith(reason)


@pytest.mark.parametrize(
    ("card", "peaks"),
    [
        ("NVIDIA H100 80GB HBM3", (989, 67)), ("NVIDIA H100 PCIe", (756, 51)), ("NVIDIA A100-SXM4-80GB", (312, 19.5)),
        ("NVIDIA L40S", (362, 91.6)), ("NVIDIA GeForce RTX 4090", (165.2, 82.6)), ("NVIDIA H200", (989, 67)),
        ("NVIDIA RTX 6000 Ada Generation", (364, 91.1)), ("Tesla T4", (None, None)), ("NVIDIA A1000", (None, None)),
    ],
)  # fmt: skip
def test_known_cards(card, peaks):
    assert (known_peak(card, "bfloat16"), known_peak(card, "float32")) == peaks


def test_every_entry_can_be_reached():
    for name, peaks in PEAKS.items():
        assert known_peak("NVIDIA " + " ".join(name), "bfloat16") == peaks[0], name


def test_peak_of_the_settings_goes_first():
    device = torch.device("cpu")
    assert peak_tflops(configure(model="m", data="d", peak_tflops=3.5), device) == 3.5
    assert peak_tflops(configure(model="m", data="d"), device) == "the peak of a CPU is not known, give peak_tflops"


def test_a_training_reports_its_rates(tmp_path, caplog):
    caplog.set_level("DEBUG", "pyprefopt")
    fit(make_job(tmp_path, SimPO(), peak_tflops=1.0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["tokens_per_second"] >= line["useful_tokens_per_second"] > 0
        assert line["padding_share"] == 0
        assert line["peak_memory_gib"] > 0
        assert "mfu" not in line
    assert "padding 0.0 %, peak memory" in caplog.text
    assert "policy: no MFU: ToyModel is no transformers model" in caplog.text
