"""The same inputs through other people's losses. A peer that is not installed is skipped."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pyprefopt.losses import DPO, IPO, SimPO
from tests.losses.pairs import batch_of, losses, random_pairs
from tests.reference.losses import Response


@pytest.fixture(scope="module")
def pairs():
    return random_pairs(21, pairs=8)


def padded(pairs, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen, then rejected responses after a prompt of one token, right-padded: log-probs and completion mask."""
    responses = [pair[side] for side in (0, 1) for pair in pairs]
    width = 1 + max(len(r.policy) for r in responses)
    values, mask = torch.zeros(len(responses), width), torch.zeros(len(responses), width, dtype=torch.int64)
    for row, response in enumerate(responses):
        values[row, 1 : 1 + len(response.policy)] = torch.tensor(getattr(response, name))
        mask[row, 1 : 1 + len(response.policy)] = 1
    return values, mask


class Given(torch.nn.Module):
    """A model whose log-probs of the tokens from the second on are given."""

    def __init__(self, logps: torch.Tensor) -> None:
        super().__init__()
        self.logps = logps[:, 1:]

    def forward(self, **_: object) -> SimpleNamespace:
        none = torch.zeros_like(self.logps)
        return SimpleNamespace(log_probs=self.logps, entropy=none, mean_logits=none, is_top1=none.bool())


def trl_loss(pairs, loss_type: str, beta: float) -> float:
    """The mean loss that TRL's DPOTrainer computes; of the trainer only what its loss reads is there."""
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    policy, mask = padded(pairs, "policy")
    ref_chosen, ref_rejected = padded(pairs, "ref")[0].sum(1).chunk(2)
    same = SimpleNamespace(gather=lambda t: t, gather_for_metrics=lambda t: t, device=torch.device("cpu"))
    trainer = SimpleNamespace(
        model=Given(policy).eval(), accelerator=same, beta=beta, loss_types=[loss_type], loss_weights=[1.0],
        label_smoothing=0.0, f_divergence_type="reverse_kl", use_weighting=False, ld_alpha=None,
        aux_loss_enabled=False, precompute_ref_logps=True, _metrics={"eval": defaultdict(list)}, _total_train_tokens=0,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
    }  # fmt: skip
    return float(dpo_trainer.DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False))


@pytest.mark.parametrize(
    ("loss_type", "method"),
    [("sigmoid", DPO(beta=0.1)), ("sigmoid", DPO(beta=0.5)), ("ipo", IPO(beta=0.1)), ("ipo", IPO(beta=1.0))],
)
def test_trl_dpo(pairs, loss_type, method):
    batch, logps = batch_of(pairs, torch.float32)
    mine = losses(method, batch, logps).mean().item()
    assert trl_loss(pairs, loss_type, method.beta) == pytest.approx(mine, rel=1e-5)


@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 1.4), (10.0, 3.0)])
def test_trl_simpo(pairs, beta, gamma):
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    trainer = SimpleNamespace(
        alpha=0.0, beta=beta, simpo_gamma=gamma, label_smoothing=0.0, loss_type="simpo",
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    means = [torch.tensor([sum(p[side].policy) / len(p[side].policy) for p in pairs]) for side in (0, 1)]
    theirs, *_ = cpo.CPOTrainer.cpo_loss(trainer, *means)
    batch, logps = batch_of(pairs, torch.float32)
    torch.testing.assert_close(losses(SimPO(beta=beta, gamma=gamma), batch, logps), theirs, rtol=1e-5, atol=1e-6)


def test_trl_label_smoothing(pairs):
    """TRL's trainer without a reference still has it: DPO with a reference that says 0 everywhere."""
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    trainer = SimpleNamespace(
        alpha=0.0, beta=0.3, label_smoothing=0.2, loss_type="sigmoid",
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    theirs, *_ = cpo.CPOTrainer.cpo_loss(
        trainer, *(torch.tensor([sum(p[side].policy) for p in pairs]) for side in (0, 1))
    )
    batch, logps = batch_of(pairs, torch.float32)
    batch = replace(batch, ref_logps=torch.zeros_like(batch.ref_logps))
    mine = losses(DPO(beta=0.3, label_smoothing=0.2), batch, logps)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_liger_dpo(pairs):
    """Liger's fused loss takes hidden states and the head; ours the log-probs that they give."""
    chunked = pytest.importorskip("liger_kernel.chunked_loss")
    torch.manual_seed(0)
    width, vocabulary, length, count = 8, 11, 6, 4
    hidden, other = torch.randn(2 * count, length, width), torch.randn(2 * count, length, width)
    head, target = torch.randn(vocabulary, width), torch.randint(0, vocabulary, (2 * count, length))

    def per_token(states: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(states @ head.T, -1).gather(-1, target[..., None])[..., 0]

    policy, ref = per_token(hidden).tolist(), per_token(other).tolist()
    made = [Response(p, r, [True] * length) for p, r in zip(policy, ref, strict=True)]
    batch, logps = batch_of(list(zip(made[:count], made[count:], strict=True)), torch.float32)
    theirs = chunked.LigerFusedLinearDPOLoss(beta=0.1)(head, hidden, target, ref_input=other, ref_weight=head)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert losses(DPO(beta=0.1), batch, logps).mean().item() == pytest.approx(float(theirs), rel=1e-5)
