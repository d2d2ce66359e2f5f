from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling import LogpsModel, RewardModel, load_model, save_policy, score_logps
from tests.modeling.models import ARCHITECTURES, LAYOUTS, make_groups, packed_model, shake, write_config
from tests.reference.packing import Group, Response, pack_groups

NAMES = ["llama", "gpt_neox", "qwen2", "gemma2", "mistral"]


def reward_model(name: str, **options: object) -> RewardModel:
    with tempfile.TemporaryDirectory() as directory:
        model = load_model(write_config(Path(directory), ARCHITECTURES[name]), head="reward", **options)
    shake(model)
    return RewardModel(model)


def alone(model: torch.nn.Module, groups: list[Group]) -> Tensor:
    """Scores of transformers' own classifier, one whole text at a time."""
    texts = [group.prompt + response.ids for group in groups for response in group.responses]
    return torch.stack([model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in texts])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_saved_it_scores_in_transformers_as_it_was_trained(name: str, layout: str, tmp_path: Path) -> None:
    model, groups = reward_model(name), make_groups()
    scores = model(pack_groups(groups, layout, last_token=True).to()).scores
    assert scores.std() > 0.1
    saved = AutoModelForSequenceClassification.from_pretrained(save_policy(model, tmp_path / "reward")).eval()
    assert saved.config.num_labels == 1
    assert saved.config.architectures == [type(saved).__name__]
    torch.testing.assert_close(scores, alone(saved, groups), rtol=0, atol=2e-5)
    ours = torch.autograd.grad(scores.square().sum(), model.causal.score.weight)[0]
    theirs = torch.autograd.grad(alone(saved, groups).square().sum(), saved.score.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_padded_texts_get_the_same_scores(tmp_path: Path) -> None:
    model, groups = reward_model("llama", pad_token_id=0), [Group([5, 6], [Response([7, 8, 9]), Response([1])])]
    scores = model(pack_groups(groups, last_token=True).to()).scores
    saved = AutoModelForSequenceClassification.from_pretrained(save_policy(model, tmp_path / "reward")).eval()
    padded = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 1, 0, 0]])
    got = saved(input_ids=padded, attention_mask=(padded > 0).long()).logits[:, 0]
    torch.testing.assert_close(scores, got, rtol=0, atol=2e-5)


def test_without_a_padding_token_padded_texts_are_refused(tmp_path: Path) -> None:
    saved = AutoModelForSequenceClassification.from_pretrained(save_policy(reward_model("llama"), tmp_path / "reward"))
    with pytest.raises(ValueError, match="no padding token"):
        saved(input_ids=torch.ones(2, 3, dtype=torch.int64))


def test_it_starts_from_a_language_model_and_goes_on_from_itself(tmp_path: Path) -> None:
    language, groups = packed_model("llama"), make_groups()
    path = save_policy(language, tmp_path / "language")
    first, again, other = (RewardModel(load_model(path, head="reward", seed=seed)) for seed in (0, 0, 1))
    batch = pack_groups(groups, last_token=True).to()
    torch.testing.assert_close(first.hidden_states(batch), language.hidden_states(batch), rtol=0, atol=1e-6)
    assert torch.equal(first.causal.score.weight, again.causal.score.weight)
    assert not torch.equal(first.causal.score.weight, other.causal.score.weight)
    resumed = RewardModel(load_model(save_policy(first, tmp_path / "reward"), head="reward", seed=5))
    assert torch.equal(resumed(batch).scores, first(batch).scores)
    with pytest.raises(ConfigError, match=r"1 are missing \(first: lm_head"):
        load_model(tmp_path / "reward")


def test_a_score_depends_on_the_own_document_alone() -> None:
    model, groups, others = reward_model("mistral"), make_groups(), make_groups(seed=5)
    before = model(pack_groups(groups, last_token=True).to()).scores
    after = model(pack_groups([others[0], *groups[1:]], last_token=True).to()).scores
    own = len(groups[0].responses)
    assert not torch.equal(before[:own], after[:own])
    assert torch.equal(before[own:], after[own:])


def test_gradient_checkpointing_changes_no_bit() -> None:
    batch = pack_groups(make_groups(), last_token=True).to()
    plain, checkpointed = reward_model("llama"), reward_model("llama", gradient_checkpointing=True)
    assert torch.equal(plain(batch).scores, checkpointed(batch).scores)


def test_what_does_not_fit_is_refused() -> None:
    model = reward_model("llama")
    with pytest.raises(DataError, match="last_token=True"):
        model(pack_groups(make_groups()).to())
    with pytest.raises(ConfigError, match="no log-probs"):
        score_logps(model, pack_groups(make_groups(), last_token=True).to())
    with pytest.raises(ConfigError, match="no linear head `score`"):
        RewardModel(packed_model("llama").model)
    with pytest.raises(ConfigError, match="no language model head"):
        LogpsModel(model.model)
