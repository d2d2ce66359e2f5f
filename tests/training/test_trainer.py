from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pyprefopt.errors import DataError, TrainingError
from pyprefopt.losses import DPO, SFT, SePO, SimPO
from pyprefopt.settings.resolve import configure
from pyprefopt.training import trainer
from pyprefopt.training.callbacks import Callback
from pyprefopt.training.engine import Engine
from pyprefopt.training.schedule import learning_rate
from pyprefopt.training.trainer import HeldOut, Job, fit
from tests.reference.packing import pack_groups
from tests.training.toy import ToyLoader, ToyModel, make_groups, with_ref_logps

EXAMPLES = sorted((Path(__file__).parents[2] / "configs" / "deepspeed").glob("*.json"))
GROUPS = with_ref_logps(make_groups(14), ToyModel())


def run_config(directory, **settings):
    defaults = {"learning_rate": 1e-2, "num_train_epochs": 2.0, "global_batch_size": 6, "save_steps": 0}
    return configure(model="m", data="d", output_dir=str(directory), **{**defaults, **settings})


def make_job(directory, method=None, *, groups=None, per_batch=2, model=None, **settings):
    run = run_config(directory, **settings)
    loader = ToyLoader(groups or GROUPS, batch=6, per_batch=per_batch)
    return Job("policy", model or ToyModel(), method or DPO(), loader, run, run, directory / "policy", "key")


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory):
    return [line["loss"] for line in lines(directory) if "loss" in line]


def plain_dpo_losses(run, beta=0.1):
    """One big batch a step, torch's AdamW, the formula written out."""
    model, loader = ToyModel(), ToyLoader(GROUPS, batch=6, per_batch=100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0, betas=(0.9, 0.95), weight_decay=0)
    found = []
    for step in range(6):
        optimizer.param_groups[0]["lr"] = learning_rate(step, 6, run)
        batch = pack_groups([GROUPS[row] for row in loader.window(step)]).to()
        ratios = torch.zeros(len(batch.response_row)).index_add(0, batch.response_index, model(batch) - batch.ref_logps)
        loss = -F.logsigmoid(beta * (ratios[batch.pair_chosen] - ratios[batch.pair_rejected])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.max_grad_norm)
        optimizer.step()
        found.append(float(loss.detach()))
    return found, model.state_dict()


@pytest.mark.parametrize("per_batch", [1, 2, 4, 6])
def test_as_a_plain_loop_however_a_step_is_packed(tmp_path, per_batch):
    job = make_job(tmp_path, per_batch=per_batch, max_grad_norm=0.2)
    result = fit(job)
    expected, weights = plain_dpo_losses(job.run)
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-6)
    assert losses(tmp_path)[0] == pytest.approx(math.log(2), abs=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(result.weights[name], value, atol=2e-6, rtol=0)
    assert max(line["grad_norm"] for line in lines(tmp_path)) > 0.2  # clipping was at work


def test_dropout_follows_from_the_seed(tmp_path):
    """Whatever drew random numbers before; and every seed has its own."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        job = make_job(tmp_path / name, model=ToyModel(dropout=0.2), seed=seed)
        torch.rand(len(name) + ord(name))
        fit(job)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_train_as_stage_0(tmp_path, stage):
    fit(make_job(tmp_path / "0"))
    fit(make_job(tmp_path / "z", zero_stage=stage))
    keys = ("loss", "grad_norm", "rewards/margins", "logps/chosen")
    for ours, theirs in zip(lines(tmp_path / "z"), lines(tmp_path / "0"), strict=True):
        assert [ours[key] for key in keys] == pytest.approx([theirs[key] for key in keys], abs=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_trains(tmp_path, stage):
    result = fit(make_job(tmp_path, dtype="bfloat16", zero_stage=stage))
    assert losses(tmp_path)[0] == pytest.approx(math.log(2), abs=5e-3)
    assert losses(tmp_path)[-1] < 0.66
    assert result.weights["head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_shipped_deepspeed_files_train_as_without_them(tmp_path, path):
    stage = json.loads(path.read_text())["zero_optimization"]["stage"]
    fit(make_job(tmp_path, deepspeed=str(path), zero_stage=2 if stage == "auto" else stage))
    assert losses(tmp_path) == pytest.approx(plain_dpo_losses(run_config(tmp_path))[0], abs=1e-5)


def test_sft_is_a_mean_over_all_tokens_of_the_step(tmp_path):
    groups = make_groups(6, single=True)
    model = ToyModel()
    with torch.no_grad():
        expected = -float(model(pack_groups(groups).to()).mean())
    fit(make_job(tmp_path, SFT(), groups=groups, model=model, max_steps=1))
    assert losses(tmp_path) == pytest.approx([expected], abs=1e-6)
    assert "rewards/accuracies" not in lines(tmp_path)[0]


@pytest.mark.parametrize("method", [SePO(), SimPO()])
def test_methods_without_a_reference_learn(tmp_path, method):
    result = fit(make_job(tmp_path, method, num_train_epochs=8))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.05
    assert result.metrics["rewards/accuracies"] > 0.6


def test_metrics_file_and_result(tmp_path):
    job = make_job(tmp_path, eval_steps=4, logging_steps=4)
    held_out = ToyLoader(GROUPS[:5], batch=5, per_batch=2)
    result = fit(Job(**{**job.__dict__, "tests": {"eval": HeldOut(held_out, held_out)}}))
    found = [(line["step"], "loss" in line, "eval_ranking_accuracy" in line) for line in lines(tmp_path)]
    assert found == [(0, False, True), (4, True, False), (4, False, True), (6, True, False), (6, False, True)]
    train = lines(tmp_path)[3]
    assert train["stage"] == "policy"
    assert train["epoch"] == 2
    assert train["num_scored_tokens"] == 2 * sum(len(r.ids) for g in GROUPS for r in g.responses)
    assert train["num_tokens"] > train["num_scored_tokens"]
    assert train["learning_rate"] == learning_rate(5, 6, job.run)
    expected = plain_dpo_losses(job.run)[0]
    assert lines(tmp_path)[1]["loss"] == pytest.approx((sum(expected[:2]) * 6 + expected[2] * 2 + expected[3] * 6) / 20)
    assert (result.steps, result.peak_memory > 0) == (6, True)
    assert result.eval_before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.eval_after["eval_loss"] < result.eval_before["eval_loss"]
    assert list((tmp_path / "tensorboard" / "policy").glob("events*"))


def test_missing_reference_log_probs_are_named(tmp_path):
    with pytest.raises(DataError, match=r"DPO needs ref_logps, but the batch of rows .* has none; compute ref_logps"):
        fit(make_job(tmp_path, groups=make_groups(6)))


def test_a_step_without_units_is_refused(tmp_path):
    groups = with_ref_logps(make_groups(6, single=True), ToyModel())
    with pytest.raises(DataError, match="step 1 has no pair to average the loss over, its rows are 0, 1, 2, 3, 4, 5"):
        fit(make_job(tmp_path, groups=groups))


class PoisonRow3(ToyModel):
    """Gives NaN for row 3, but not in the first step, which has it too."""

    steps = 0

    def forward(self, batch):
        logps = super().forward(batch)
        self.steps += self.training
        bad = (batch.response_row == 3)[batch.response_index] & (self.steps > 2)
        return logps.masked_fill(bad, torch.nan)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (2, "float32"), (3, "bfloat16")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path, stage, dtype):
    model = PoisonRow3()
    job = make_job(tmp_path, model=model, zero_stage=stage, dtype=dtype, save_steps=1)
    with pytest.raises(TrainingError, match=r"the loss of step 5 is not finite at rows 3; .* no checkpoint"):
        fit(job)
    assert len(losses(tmp_path)) == 4
    assert sorted(path.name for path in (job.directory / "checkpoints").iterdir()) == ["step-3", "step-4"]
    if stage < 3:  # under ZeRO-3 this rank's model is not whole any more
        assert all(bool(p.isfinite().all()) for p in model.parameters())


@dataclass(frozen=True)
class NoWeights(DPO):
    """Every weight is NaN."""

    def token_weights(self, batch, logps):
        return (batch.token_mask * torch.nan)[None]


def test_weights_that_are_not_finite_are_named(tmp_path):
    job = replace(make_job(tmp_path), method=NoWeights(beta=0.5))
    with pytest.raises(
        TrainingError, match=r"where the token weights of loss\.\* are not finite \(NoWeights\(beta=0\.5"
    ):
        fit(job)


class InfiniteGradient(ToyModel):
    """Finite log-probs whose gradient is infinite (the slope of sqrt at 0)."""

    def forward(self, batch):
        return super().forward(batch) + (self.norm.bias.sum() * 0).abs().sqrt()


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (1, "bfloat16"), (2, "bfloat16")],
)
def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path, stage, dtype):
    model = InfiniteGradient()
    before = ToyModel().to(getattr(torch, dtype)).state_dict()
    with pytest.raises(TrainingError, match="the gradient of step 1 is not finite at rows"):
        fit(make_job(tmp_path, model=model, zero_stage=stage, dtype=dtype, save_steps=1))
    assert not [*(tmp_path / "policy" / "checkpoints").iterdir()]
    if stage < 3:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Terminate(Callback):
    """Sends this process a signal after `step`, `times` times."""

    def __init__(self, step, number=signal.SIGTERM, times=1):
        self.step, self.number, self.times = step, number, times

    def on_step(self, progress, metrics):
        if progress.step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(0.01)


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on(tmp_path, step, number, word, caplog):
    fit(make_job(tmp_path / "whole"))
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    times = 2 if number == signal.SIGINT else 1  # a launcher passes on what the terminal has sent already
    with pytest.raises(TrainingError, match=f"stopped by {word} after step {step} of 6"):
        fit(make_job(tmp_path / "cut"), [Terminate(step, number, times)])
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert caplog.text.count("Ctrl-C again ends at once") == (number == signal.SIGINT)
    assert "begins anew" not in caplog.text
    job = make_job(tmp_path / "cut")
    result = fit(job)
    assert job.train.asked == list(range(step, 6))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert result.metrics["loss"] == losses(tmp_path / "whole")[-1]


@pytest.mark.parametrize(
    ("save_steps", "kept"), [(2, "the checkpoint of step 4 is there, and 1 finished step"), (0, "no")]
)
def test_a_second_ctrl_c_ends_at_once_and_names_what_is_lost(tmp_path, monkeypatch, caplog, save_steps, kept):
    monkeypatch.setattr(trainer, "ONE_STROKE", 0.0)
    settings = {"save_steps": save_steps}
    with pytest.raises(KeyboardInterrupt, match=rf"^policy was ended in step 6 of 6; {kept}"):
        fit(make_job(tmp_path, **settings), [Terminate(5, signal.SIGINT, times=2)])
    job = make_job(tmp_path, **settings)
    fit(job)
    assert job.train.asked == list(range(4 if save_steps else 0, 6))
    assert ("no checkpoint is left of an earlier try; the training begins anew" in caplog.text) == (save_steps == 0)


def test_a_second_ctrl_c_in_the_middle_of_a_step(tmp_path, monkeypatch):
    """The loop is in the middle of its third step: the second one is finished."""
    job, engine_step = make_job(tmp_path, save_steps=0), Engine.step
    monkeypatch.setattr(trainer, "ONE_STROKE", 0.0)

    def interrupted(engine, rate):
        rates.append(rate)
        if len(rates) == 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return engine_step(engine, rate)

    rates = []
    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(
        KeyboardInterrupt, match="ended in step 3 of 6; no checkpoint is there, and 2 finished steps are lost"
    ):
        fit(job)
