"""Every method through the whole run: how its pairs fall into micro-batches, ranks and ZeRO stages changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyprefopt.data.embedded import write_candidates
from pyprefopt.losses import METHODS
from tests.losses.pairs import REQUIRED
from tests.pipeline.runs import train
from tests.training.ranks import run_ranks

FAMILIES = ("dpo", "dpo-reg", "sepo", "sft", "rrhf", "reward", "tdpo2")  # the shapes that losses have
COMPARED = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "num_scored_tokens")
# Windows of 10 of 64 pairs (the last has 4): in one micro-batch, or in several of an odd number over two ranks.
WHOLE = {"max_tokens_per_batch": 4096, "zero_stage": 0}
PARTS = {"max_tokens_per_batch": 512, "per_device_train_batch_size": 3, "layout": "separate"}


def settings_of(name: str, root: Path) -> dict[str, Any]:
    """A run of 7 steps of the method (of pairs a whole epoch), from random weights."""
    method = METHODS[name]
    given: dict[str, Any] = {
        "method": name, "loss": REQUIRED.get(name, {}), "base": {}, "oracle": {}, "policy_init": "model",
        "eval_data": None, "eval_ratio": 0.0, "global_batch_size": 10, "learning_rate": 3e-3, "save_steps": 0,
        "max_steps": 7, "cache": str(root / "cache"),
    }  # fmt: skip
    if method.trains_on == "candidates":
        given["data"] = str(root / "candidates" / "train.parquet")
    if method.trains_on == "responses":
        given["policy_init"] = None
    if "token_rewards" in method.needs:
        given["rewards"] = {"name": "random"}
    if name == "sepo":
        given["selection"] = {"method": "random", "chosen_ratio": 0.3, "rejected_ratio": 0.5}
    return given


def train_all(inputs: str, root: str, cases: dict[str, dict[str, Any]]) -> None:
    """Several runs in one process: name of its folder -> settings."""
    for name, settings in cases.items():
        train(inputs, str(Path(root) / name), **settings)


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_alike(ours: Path, theirs: Path) -> None:
    pairs = list(zip(lines(ours), lines(theirs), strict=True))
    assert len(pairs) == 7
    for our, their in pairs:
        for key in COMPARED:
            assert (key in our) == (key in their)
            if key in our:
                assert our[key] == pytest.approx(their[key], rel=1e-4, abs=2e-5), (ours.name, our["step"], key)


@pytest.fixture(scope="module")
def root(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every method trained on one rank, a step's pairs in one micro-batch."""
    root = tmp_path_factory.mktemp("partition")
    train_set, _ = write_candidates(root / "candidates", train=64, test=8)
    train_set.replace(root / "candidates" / "train.parquet")
    cases = {f"{name} whole": {**settings_of(name, root), **WHOLE} for name in METHODS}
    assert run_ranks(1, train_all, str(inputs), str(root), cases) == [0]
    return root


def test_micro_batches_and_layout(inputs: Path, root: Path) -> None:
    cases = {f"{name} parts": {**settings_of(name, root), **PARTS} for name in METHODS}
    assert run_ranks(1, train_all, str(inputs), str(root), cases) == [0]
    for name in METHODS:
        assert_alike(root / f"{name} parts", root / f"{name} whole")


@pytest.mark.slow
@pytest.mark.parametrize("names", [sorted(METHODS)[::2], sorted(METHODS)[1::2]], ids=lambda names: names[0])
def test_two_ranks(inputs: Path, root: Path, names: list[str]) -> None:
    cases = {f"{name} two": {**settings_of(name, root), **PARTS, "zero_stage": 2} for name in names}
    assert run_ranks(2, train_all, str(inputs), str(root), cases) == [0, 0]
    for name in names:
        assert_alike(root / f"{name} two", root / f"{name} whole")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_two_ranks_at_other_zero_stages(inputs: Path, root: Path, stage: int) -> None:
    names = [name for name in FAMILIES if not (stage == 3 and "ref_kl" in METHODS[name].needs)]  # refused by name
    cases = {f"{name} z{stage}": {**settings_of(name, root), **PARTS, "zero_stage": stage} for name in names}
    assert run_ranks(2, train_all, str(inputs), str(root), cases) == [0, 0]
    for name in names:
        assert_alike(root / f"{name} z{stage}", root / f"{name} whole")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("dpo", 3), ("tdpo2", 2)])
def test_lora_on_two_ranks(inputs: Path, root: Path, name: str, stage: int) -> None:
    """The reference is the model without its adapter: stored log-probs (dpo), or the adapter off (tdpo2)."""
    given = {**settings_of(name, root), "lora": {"r": 4}, "learning_rate": 1e-2}
    assert run_ranks(1, train_all, str(inputs), str(root), {f"{name} lora": {**given, **WHOLE}}) == [0]
    cases = {f"{name} lora two": {**given, **PARTS, "zero_stage": stage}}
    assert run_ranks(2, train_all, str(inputs), str(root), cases) == [0, 0]
    assert_alike(root / f"{name} lora two", root / f"{name} lora")
    first = lines(root / f"{name} lora")[0]
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert (root / "cache").exists()
    assert len({line["loss"] for line in lines(root / f"{name} lora")}) == 7  # it moves away from there
