from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling import LogpsModel, RewardModel, load_model, save_policy, score_logps
from pyprefopt.modeling.reward_head import score_responses
from tests.modeling.models import ARCHITECTURES, LAYOUTS, make_groups, packed_model, shake, write_config
from tests.reference.packing import Group, Response, pack_groups

NAMES = ["llama", "gpt_neox", "qwen2", "gemma2", "mistral"]
QWEN3 = {**ARCHITECTURES["llama"], "model_type": "qwen3", "head_dim": 8}


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
    with pytest.raises(ConfigError, match=r"model must be a language model, got a reward model"):
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


def write_classifier(directory: Path, name: str, num_labels: int = 1) -> Path:
    """A sequence classifier as transformers saves it."""
    settings = QWEN3 if name == "qwen3" else ARCHITECTURES[name]
    config = AutoConfig.for_model(**settings, num_labels=num_labels, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    shake(model)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", [*NAMES, "qwen3"])
def test_given_classifiers_score_as_in_transformers(name: str, tmp_path: Path) -> None:
    """In packs of one group, of four, and without packing."""
    path, groups = write_classifier(tmp_path, name), make_groups(first_id=1)
    model = RewardModel(load_model(path, head="score"))
    packs = [[group] for group in groups], [groups]
    one, four = (
        torch.cat([score_responses(model, pack_groups(pack, last_token=True).to()) for pack in packing])
        for packing in packs
    )
    theirs = alone(AutoModelForSequenceClassification.from_pretrained(path).eval(), groups)
    assert theirs.std() > 0.1
    torch.testing.assert_close(one, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(four, theirs, rtol=0, atol=1e-5)


def test_a_head_that_is_not_there_or_has_several_outputs_is_refused(tmp_path: Path) -> None:
    several = write_classifier(tmp_path / "several", "llama", num_labels=3)
    with pytest.raises(ConfigError, match=r"must have one output, got 3 \(num_labels\) in .*several"):
        load_model(several, head="score")
    language = save_policy(packed_model("llama"), tmp_path / "language")
    with pytest.raises(ConfigError, match=r"must have the weights of its head \(score\.weight\), got no score"):
        load_model(language, head="score")
    with pytest.raises(ConfigError, match=r"which has no weights; give what method reward"):
        load_model(write_config(tmp_path / "bare", ARCHITECTURES["llama"]), head="score")
    with pytest.raises(ConfigError, match="a language model has no scores"):
        score_responses(packed_model("llama"), pack_groups(make_groups()).to())
