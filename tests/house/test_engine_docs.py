"""The blocks of docs/engine.md run one after another as they stand, and what they give is what the page says."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO
from pyprefopt.modeling import LogpsModel
from pyprefopt.training.step import method_sums

PAGE = Path(__file__).parents[2] / "docs/engine.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's code leaves, but for those of the whole loop."""
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("engine"))
        for block in blocks[:-1]:
            exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102
    return names


def test_the_whole_loop_learns_and_ends(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = given | {"model": deepcopy(given["model"])}
    exec(compile(BLOCK.findall(PAGE.read_text(encoding="utf-8"))[-1], str(PAGE), "exec"), names)  # noqa: S102
    losses = names["losses"]
    assert len(losses) == len(names["loader"]) == 6
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.6


def test_log_probs_are_those_of_the_models_logits(given):
    """Each response behind its prompt, alone, through the whole head."""
    segments, model = given["segments"], given["model"]
    tokens = given["tokens"]
    for line in set(tokens["line"]):
        row, ids = segments["row"][line], segments["ids"][line].to_list()
        prompt = segments.filter((segments["row"] == row) & (segments["kind"] == "prompt"))["ids"][0].to_list()
        text = torch.tensor([prompt + ids])
        plain = AutoModelForCausalLM.from_config(model.causal.source_config, attn_implementation="eager").eval()
        plain.load_state_dict(model.causal.state_dict())
        with torch.no_grad():
            whole = plain(input_ids=text).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        found = tokens.filter(tokens["line"] == line)
        assert found["id"].to_list() == ids
        assert found["position"].to_list() == list(range(len(ids)))
        assert set(found["row"]) == {row}
        expected = whole.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(found["logp"].to_list()), expected, atol=1e-5)


def test_the_loss_is_dpo_and_has_a_gradient(given):
    model, batch = given["model"], given["batch"]
    assert given["loss"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.any() for p in model.parameters())
    ref, method = given["ref"] - torch.linspace(0, 1, len(given["ref"])), DPO(beta=0.1)
    by_hand = given | {"ref": ref}
    exec(BLOCK.findall(PAGE.read_text(encoding="utf-8"))[3].replace("loss.backward()", ""), by_hand)  # noqa: S102
    ours = method.loss(method_sums(method, replace(batch, ref_logps=ref), given["logps"]), batch)
    assert by_hand["loss"].item() == pytest.approx(ours.mean().item(), rel=1e-6)
    assert by_hand["loss"].item() != pytest.approx(math.log(2), abs=1e-3)


def test_outputs_have_what_the_page_says(given):
    outputs, logps = given["outputs"], given["logps"]
    assert torch.equal(outputs.logps.detach(), logps.detach())
    assert torch.allclose(given["ref"], logps.detach(), atol=1e-6)
    assert outputs.entropy.requires_grad
    assert outputs.entropy.shape == logps.shape
    assert outputs.kl is None
    assert outputs.scores is None


def test_a_model_that_did_not_come_through_load_model_is_refused(given):
    plain = AutoModelForCausalLM.from_config(given["model"].causal.source_config)
    with pytest.raises(ConfigError, match="load_model"):
        LogpsModel(plain)
