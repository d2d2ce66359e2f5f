"""Every setting of a run, flipped: which stages get another key, and so run again."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyprefopt.data.batching.rule import Selection
from pyprefopt.losses import DPO
from pyprefopt.rewards import Contrastive
from pyprefopt.settings.config import LoraConfig, OnPolicyConfig, RunConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.settings.typed import dotted_names
from pyprefopt.stages import data as stages_data
from pyprefopt.stages.data import Data
from pyprefopt.stages.logps import Logps
from pyprefopt.stages.models import Source, start_model
from pyprefopt.stages.revision import Revision
from pyprefopt.stages.rewards import Rewards
from pyprefopt.stages.scores import SelectedTokens
from pyprefopt.stages.sources import NamedSource
from pyprefopt.stages.stage import Artifact
from pyprefopt.stages.training import Training, optim_of
from pyprefopt.types import unkeyed_names

DATA = {"data"}
OPTIM = ("learning_rate", "num_train_epochs", "max_steps", "until_converged", "convergence_window",
         "global_batch_size", "lr_scheduler_type", "warmup_ratio",
         "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")  # fmt: skip
TRAINED = {"base", "oracle", "policy"}

# Setting -> (another value, the stages whose own key changes). What comes after them follows through their content.
FLIPS: dict[str, tuple[Any, set[str]]] = {
    "data": ("other.jsonl", DATA), "eval_data": ("eval.jsonl", DATA), "eval_ratio": (0.2, DATA),
    "columns": (("prompt=question",), DATA), "format": ("hh", DATA), "on_error": ("skip", DATA),
    "aspect": ("honesty", DATA),
    "max_prompt_tokens": (16, DATA),
    "min_response_tokens": (8, DATA),
    "prompt_overflow": ("keep_end", DATA), "max_tokens": (4096, DATA), "score_reasoning": (False, DATA),
    "truncation.ratio": (0.5, DATA), "truncation.tokens": (5, DATA), "truncation.rounding": ("floor", DATA),
    "truncation.length": (5, DATA), "truncation.unit": ("characters", DATA), "eval_truncation": (("same",), DATA),
    "truncation.ratio_base": ("shared_min", DATA), "truncation.cut_end": ("template", DATA),
    "tokenizer": ("other.json", DATA), "eos_token": ("<end>", DATA), "chat_template": ("chatml", DATA),
    "base.data": ("sft.jsonl", DATA), "check": (True, DATA),
    "seed": (1, DATA | TRAINED), "dtype": ("bfloat16", TRAINED | {"ref_logps"}),
    "lora.r": (8, TRAINED), "lora.alpha": (32, TRAINED), "lora.dropout": (0.1, TRAINED),
    "lora.target_modules": (("q_proj",), TRAINED), "lora.load_in_4bit": (True, TRAINED),
    "loss.reward_scale": (2.0, {"policy"}), "loss.normalizer": ("selected", {"policy"}),
    "base.fraction": (0.5, {"base"}), "base.sample": (1, {"base"}), "base.loss.normalization": ("sequence", {"base"}),
    "oracle.fraction": (0.5, {"oracle"}), "oracle.sample": (1, {"oracle"}), "oracle.loss.beta": (0.3, {"oracle"}),
    "oracle.loss.label_smoothing": (0.1, {"oracle"}),
    "selection.chosen_ratio": (0.5, {"selection"}), "selection.rejected_ratio": (0.5, {"selection"}),
    "selection.chosen_threshold": (0.5, {"selection"}), "selection.rejected_threshold": (0.5, {"selection"}),
    "selection.rounding": ("floor", {"selection"}), "selection.method": ("random", {"selection"}),
    "selection.minimum": (2, {"selection"}), "selection.excluded_ids": ((7,), {"selection"}),
}  # fmt: skip
VALUES = dict(zip(OPTIM, (1e-3, 3.0, 7, 0.1, 5, 16, "linear", 0.2, 0.1, 0.5, 0.5, 1e-6, 2.0), strict=True))
for prefix, stage in (("", "policy"), ("base.", "base"), ("oracle.", "oracle")):
    FLIPS |= {prefix + name: (value, {stage}) for name, value in VALUES.items()}

# Setting of token rewards -> (provider, another value, the stages whose own key changes).
REWARD_FLIPS: dict[str, tuple[str, Any, set[str]]] = {
    "beta": ("dpo", 0.7, {"rewards"}), "transform": ("dpo", "sigmoid_centered", {"rewards"}),
    "noise_std": ("dpo", 0.5, {"rewards"}), "noise_seed": ("random", 1, {"rewards"}),
    "gamma": ("simpo", 0.5, {"rewards"}), "form": ("simpo", "length_norm", {"rewards"}),
    "column": ("column", "credits", {"rewards"}), "name": ("dpo", "random", {"rewards"}),
    "prefix": ("contrastive", "none", {"rewards", "revision"}), "wrap": ("contrastive", "raw", {"rewards", "revision"}),
    "context": ("contrastive", "last", {"rewards", "revision"}), "score_eos": ("contrastive", True, {"rewards"}),
    "max_tokens": ("contrastive", 99, {"rewards", "revision"}),
    "overflow": ("contrastive", "zero", {"rewards", "revision"}),
}  # fmt: skip
REWARD_SOURCES = {"strong", "weak", "model", "better_prompt", "worse_prompt"}  # their content is an input

# Settings that change which stages there are, or where a model comes from, or nothing in the results.
STRUCTURAL = {"method", "model", "base.path", "oracle.path", "policy_init"}
# Of rounds, each of which is a run without them: which stages there are.
ROUNDS = {"on_policy_rounds", *(f"on_policy.{f.name}" for f in fields(OnPolicyConfig))}
RECORDED = set(unkeyed_names(RunConfig))


@pytest.fixture
def names_stand_for_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data files and tokenizers of these settings are not there."""
    monkeypatch.setattr(NamedSource, "content_hash", lambda self: self.path)
    monkeypatch.setattr(NamedSource, "inputs", ())

    def named(config: RunConfig) -> SimpleNamespace:
        return SimpleNamespace(fingerprint=f"{config.tokenizer} {config.eos_token} {config.chat_template}")

    monkeypatch.setattr(stages_data, "open_tokenizer", named)


def keys(config: RunConfig) -> dict[str, str]:
    """The keys of all stages of a SePO run, as if every input had the same content."""
    data = Artifact("data", Path("data"), {"key": "data", "vocab_size": 10}, reused=False)
    scores = Artifact("scores", Path("scores"), {"key": "scores"}, reused=False)
    source, base, oracle = Source("model", "model"), config.base, config.oracle
    given: dict[str, Any] = {"data": data, "start": source}
    given |= {"dtype": config.dtype, "lora": config.lora, "seed": config.seed}
    stages = {
        "data": Data.of(config),
        "ref_logps": Logps(data=data, model=source, dtype=config.dtype),
        "selection": SelectedTokens(
            data=data, rule=config.selection, scores=scores if config.selection.needs_scores else None, seed=0
        ),
        "base": Training(
            name="base", method=base.loss, optim=optim_of(base), fraction=base.fraction, sample=base.sample, **given
        ),
        "oracle": Training(
            name="oracle", method=oracle.loss, optim=optim_of(oracle), fraction=oracle.fraction, sample=oracle.sample,
            **given,
        ),
        "policy": Training(name="policy", method=config.loss, optim=optim_of(config), **given),
    }  # fmt: skip
    return {name: stage.key for name, stage in stages.items()}


def flip(config: Any, name: str, value: Any) -> Any:
    head, _, rest = name.partition(".")
    return replace(config, **{head: flip(getattr(config, head), rest, value) if rest else value})


def base_config() -> RunConfig:
    config = configure(method="sepo", model="model", data="pairs.jsonl", max_prompt_tokens=32, max_tokens=64)
    return replace(config, truncation=replace(config.truncation))


def test_every_setting_is_listed() -> None:
    known = {name for name, _ in dotted_names(RunConfig, "sepo")}
    rewards = {f"rewards.{name}" for name in set(REWARD_FLIPS) | REWARD_SOURCES}
    assert known == set(FLIPS) | rewards | STRUCTURAL | ROUNDS | RECORDED


@pytest.mark.usefixtures("names_stand_for_content")
@pytest.mark.parametrize("name", sorted(REWARD_FLIPS))
def test_flip_of_rewards(name: str) -> None:
    provider, value, expected = REWARD_FLIPS[name]
    settings = {"method": "sepo", "model": "model", "data": "pairs.jsonl"}
    config, other = (configure(**settings, rewards={"name": provider} | more) for more in ({}, {name: value}))
    before, after = reward_keys(config), reward_keys(other)
    assert {stage for stage in before if before[stage] != after.get(stage)} == expected


def reward_keys(config: RunConfig) -> dict[str, str]:
    """The keys of a run's stages, and of those that make its token rewards."""
    manifest = {"key": "data", "vocab_size": 10, "reads": {"files": {}}}
    data = Artifact("data", Path("data"), manifest, reused=False)
    stages, provider = {"rewards": Rewards(data=data, provider=config.rewards, columns={})}, config.rewards
    if isinstance(provider, Contrastive):
        stages["revision"] = Revision.of(provider, data, "better")
    return keys(config) | {name: stage.key for name, stage in stages.items()}


@pytest.mark.usefixtures("names_stand_for_content")
@pytest.mark.parametrize("name", sorted(FLIPS))
def test_flip(name: str) -> None:
    value, expected = FLIPS[name]
    config = base_config()
    before, after = keys(config), keys(flip(config, name, value))
    assert {stage for stage in before if before[stage] != after[stage]} == expected


@pytest.mark.usefixtures("names_stand_for_content")
@pytest.mark.parametrize("name", sorted(RECORDED - {"output_dir", "cache", "deepspeed"}))
def test_recorded_settings_change_no_key(name: str) -> None:
    config = base_config()
    current = getattr(config, name)
    other = {"layout": "separate", "attention": "loop", "zero_stage": 2, "compile": "on", "head_kernel": "triton",
             "log_level": "debug"}.get(name, not current if isinstance(current, bool) else 17)  # fmt: skip
    assert keys(config) == keys(replace(config, **{name: other}))


def test_seed_decides_random_weights(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama"}')
    config = replace(base_config(), model=str(path))
    assert start_model(config).fingerprint != start_model(replace(config, seed=5)).fingerprint


def test_log_probs_of_quantized_weights_are_others() -> None:
    """A QLoRA run's reference is what its policy starts from, and no plain run's."""
    plain, config = Source("model", "model"), base_config()
    assert plain.to_train(config) == plain == plain.to_train(replace(config, lora=LoraConfig(r=4)))
    packed = plain.to_train(replace(config, lora=LoraConfig(r=4, load_in_4bit=True)))
    assert (packed.path, packed.in_4bit) == ("model", True)
    data = Artifact("data", Path("data"), {"key": "data"}, reused=False)
    first, second = (Logps(data=data, model=source).key for source in (plain, packed))
    assert first != second


def test_random_selection_follows_the_seed() -> None:
    data = Artifact("data", Path("data"), {"key": "data"}, reused=False)
    rule = Selection(method="random", chosen_ratio=0.3, rejected_ratio=0.3)
    first, second = (SelectedTokens(data=data, rule=rule, scores=None, seed=seed).key for seed in (0, 1))
    assert first != second


@pytest.mark.usefixtures("names_stand_for_content")
def test_oracle_and_method_settings_are_told_apart() -> None:
    assert keys(base_config())["oracle"] != keys(replace(base_config(), loss=DPO()))["policy"]
    assert LoraConfig() == base_config().lora
