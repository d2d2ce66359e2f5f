"""Every shipped config parses, and is shipped."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path

import pytest
import yaml

from pyprefopt.rewards import DPOReward, SimPOReward
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure, load_config
from pyprefopt.settings.rules import oracle_starts_from
from pyprefopt.settings.typed import parse_yaml, typed

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "pyprefopt" / "configs"
FILES = sorted(file for file in CONFIGS.rglob("*") if file.is_file())


def test_top_level_configs_is_the_packages_folder():
    """One set of files: the package's (so that wheels have them), shown at the top level where people look."""
    assert (ROOT / "configs").resolve() == CONFIGS


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_config_parses(file):
    kind = file.relative_to(CONFIGS).parts[0]
    text = file.read_text(encoding="utf-8")
    if kind in ("method", "embedded"):
        settings = parse_yaml(text, str(file))
        assert "method" not in settings  # the file's name says it
        typed(RunConfig, settings, "dpo" if file.stem == "default" else file.stem)
    elif kind == "paper":
        load_config(file)
    elif kind == "model":
        from transformers import AutoConfig

        settings = json.loads(text)
        config = AutoConfig.for_model(**settings)
        assert not set(settings) - set(config.to_dict()), "settings that the architecture does not know"
    elif kind == "deepspeed":
        from pyprefopt.training.engine import deepspeed_config

        settings = json.loads(text)
        stage = settings.get("zero_optimization", {}).get("stage", "auto")
        stage = 2 if stage == "auto" else stage
        run = configure(deepspeed=str(file), zero_stage=stage)
        merged = deepspeed_config(run, run)
        assert merged["zero_optimization"]["stage"] == stage
        offloads = settings["zero_optimization"].get("offload_optimizer")
        assert merged["zero_optimization"].get("offload_optimizer") == offloads
    else:
        pytest.fail(f"{file}: say here how {kind} files are checked")


def test_pre_commit_runs_what_is_installed():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert hooks
    assert {hook["language"] for hook in hooks} == {"system"}


# TGDPO, Tables 8 to 10: (method, file) -> learning rate and the loss's settings; then the rewards.
TGDPO = {
    "tgdpo-llama3-8b-pairrm": (7e-7, {"beta": 0.1, "alpha": 0.5}, DPOReward(beta=0.01)),
    "tgdpo-llama3-8b-armorm": (7e-7, {"beta": 0.1, "alpha": 0.2}, DPOReward(beta=0.01)),
    "tgdpo-llama3.2-3b-armorm": (7e-7, {"beta": 0.1, "alpha": 2.0}, DPOReward(beta=0.1)),
    "tgdpo-gemma2-2b-armorm": (5e-7, {"beta": 0.1, "alpha": 0.5}, DPOReward(beta=0.1)),
    "tgdpo-llama3-8b-sft": (7e-7, {"beta": 0.1, "alpha": 0.2}, DPOReward(beta=0.1)),
    "tgdpo-llama3-8b-sft-simpo-reward": (7e-7, {"beta": 0.01, "alpha": 1.2}, SimPOReward(beta=2.5, gamma=0.5)),
    "tgdpo-llama3-8b-pairrm-dpo": (7e-7, {"beta": 0.01}, None),
    "tgdpo-llama3-8b-armorm-dpo": (7e-7, {"beta": 0.01}, None),
    "tgdpo-llama3.2-3b-armorm-dpo": (7e-7, {"beta": 0.1}, None),
    "tgdpo-gemma2-2b-armorm-dpo": (5e-7, {"beta": 0.1}, None),
    "tgdpo-llama3-8b-sft-dpo": (5e-7, {"beta": 0.1}, None),
    "tgdpo-llama3-8b-pairrm-simpo": (1e-6, {"beta": 2.5, "gamma": 1.4}, None),
    "tgdpo-llama3-8b-armorm-simpo": (1e-6, {"beta": 10.0, "gamma": 3.0}, None),
    "tgdpo-llama3.2-3b-armorm-simpo": (1e-6, {"beta": 10.0, "gamma": 3.0}, None),
    "tgdpo-gemma2-2b-armorm-simpo": (5e-7, {"beta": 20.0, "gamma": 2.0}, None),
    "tgdpo-llama3-8b-sft-simpo": (5e-7, {"beta": 2.5, "gamma": 0.5}, None),
}


# Tables 2 to 4, of Llama3-8B-Instruct PairRM: settings that differ from those of Tables 8 to 10.
TGDPO_ANALYSIS = {
    "dpo-converged": ("dpo", {"beta": 0.01}, 0.1),
    "simpo-converged": ("simpo", {"beta": 2.5, "gamma": 1.4}, 0.1),
    "alpha1.0": ("tgdpo", {"beta": 0.1, "alpha": 1.0}, 0.1),
    "alpha2.0": ("tgdpo", {"beta": 0.1, "alpha": 2.0}, 0.1),
    "dpo-beta0.1": ("dpo", {"beta": 0.1}, None),
    "reward-beta0.1": ("tgdpo", {"beta": 0.1, "alpha": 0.5}, None),
}


@pytest.mark.parametrize("name", sorted(TGDPO_ANALYSIS))
def test_tgdpos_analysis(name):
    method, loss, until = TGDPO_ANALYSIS[name]
    config = load_config(CONFIGS / "paper" / f"tgdpo-llama3-8b-pairrm-{name}.yaml")
    plain = load_config(CONFIGS / "paper" / f"tgdpo-llama3-8b-pairrm{'' if method == 'tgdpo' else f'-{method}'}.yaml")
    assert (config.method, config.until_converged) == (method, until)
    assert {setting: getattr(config.loss, setting) for setting in loss} == loss
    assert (config.learning_rate, config.model, config.global_batch_size) == (plain.learning_rate, plain.model, 128)
    if method == "tgdpo":
        beta = 0.1 if name == "reward-beta0.1" else 0.01
        assert (config.rewards.beta, config.oracle.loss.beta) == (beta, beta)


@pytest.mark.parametrize("name", sorted(TGDPO))
def test_tgdpos_tables(name):
    rate, loss, rewards = TGDPO[name]
    config = load_config(CONFIGS / "paper" / f"{name}.yaml")
    assert config.learning_rate == rate
    assert {setting: getattr(config.loss, setting) for setting in loss} == loss
    assert (config.global_batch_size, config.num_train_epochs, config.warmup_ratio) == (128, 1, 0.1)
    assert (config.max_tokens, config.lr_scheduler_type) == (2048, "cosine")
    if rewards is not None:
        assert config.rewards == rewards
        assert oracle_starts_from(config) == "model"  # where the policy does
        if config.rewards.name == "dpo":
            assert config.oracle.loss.beta == config.rewards.beta


# The same tables for TDPO: DPO's rows with a KL scale of 0.01 (D.1).
@pytest.mark.parametrize("name", sorted(name for name in TGDPO if name.endswith("-dpo")))
def test_tgdpos_tdpo_is_its_dpo_with_a_kl_scale(name):
    rate, loss, _ = TGDPO[name]
    config = load_config(CONFIGS / "paper" / f"{name.removesuffix('dpo')}tdpo2.yaml")
    assert (config.method, config.learning_rate, config.loss.alpha) == ("tdpo2", rate, 0.01)
    assert config.loss.beta == loss["beta"]
    assert config.model == load_config(CONFIGS / "paper" / f"{name}.yaml").model


# T-REG, 4.1: the hyperparameters of SimPO's authors, for Llama-3-8B-Instruct (v0.2) and Gemma-2-9B-it.
T_REG = {
    "llama3-8b-dpo": (3e-7, {"beta": 0.01}),
    "llama3-8b-simpo": (1e-6, {"beta": 10.0, "gamma": 3.0}),
    "gemma2-9b-dpo": (5e-7, {"beta": 0.01}),
    "gemma2-9b-simpo": (8e-7, {"beta": 10.0, "gamma": 5.0}),
}


@pytest.mark.parametrize("regularised", [False, True])
@pytest.mark.parametrize("name", sorted(T_REG))
def test_t_regs_settings(name, regularised):
    rate, loss = T_REG[name]
    config = load_config(CONFIGS / "paper" / f"t-reg-{name}{'-reg' if regularised else ''}.yaml")
    assert config.learning_rate == rate
    assert {setting: getattr(config.loss, setting) for setting in loss} == loss
    assert (config.global_batch_size, config.num_train_epochs, config.warmup_ratio) == (128, 1, 0.1)
    assert (config.max_tokens, config.max_prompt_tokens, config.lr_scheduler_type) == (2048, 1800, "cosine")
    if regularised:
        assert config.method.endswith("-reg")
        assert (config.loss.alpha, config.loss.sequence_weight) == (0.1, "gradient")
        rewards = config.rewards  # Eq. 3, by the reference model
        assert (rewards.name, rewards.transform, rewards.model) == ("contrastive", "sigmoid_centered", "reference")


# T-REG, Table 2 and Fig. 4, of Llama-3-8B-Instruct.
ABLATIONS = {
    "dpo-sft": {"method": "dpo-sft"},
    "dpo-reg-static": {"loss.sequence_weight": "static", "loss.alpha": 0.1, "rewards.name": "contrastive"},
    "dpo-reg-dpo-reward": {"loss.sequence_weight": "gradient", "loss.alpha": 0.1, "rewards.name": "dpo"},
    "dpo-reg-alpha-0.25": {"loss.alpha": 0.25, "rewards.name": "contrastive"},
    "dpo-reg-alpha-inf": {"loss.alpha": "inf", "rewards.name": "contrastive"},
}


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_t_regs_ablations(name):
    config = load_config(CONFIGS / "paper" / f"t-reg-llama3-8b-{name}.yaml")
    assert (config.learning_rate, config.loss.beta) == (3e-7, 0.01)
    for setting, value in ABLATIONS[name].items():
        assert reduce(getattr, setting.split("."), config) == value
    if config.rewards.name == "dpo":
        assert oracle_starts_from(config) == "model"
        assert config.rewards.transform == "sigmoid_centered"


def test_sepos_settings():
    """Tables 1 and 2: 30 % of both sides for every policy; the rest is from its authors' code, of its baselines too."""
    files = {file: load_config(file) for file in sorted((CONFIGS / "paper").glob("sepo-*.yaml"))}
    assert sorted(config.method for config in files.values()) == sorted(["dpo", "ipo", "rrhf", "sepo", "simpo"] * 6)
    for config in files.values():
        assert (config.learning_rate, config.global_batch_size, config.num_train_epochs) == (5e-7, 128, 1)
        assert (config.max_prompt_tokens, config.prompt_overflow, config.min_response_tokens) == (1900, "drop", 8)
    for file in (file for file, config in files.items() if config.method == "sepo"):
        config = files[file]
        assert config.selection.ratios == (0.3, 0.3)
        assert config.max_tokens == 2048  # all that TinyLLaMA and Pythia read, of the code's 4096
        assert (config.warmup_ratio, config.adam_beta1, config.adam_beta2) == (0.03, 0.9, 0.95)
        oracle = config.oracle
        assert (oracle.learning_rate, oracle.global_batch_size, oracle.loss.beta) == (5e-7, 256, 0.1)
        assert (oracle.fraction, oracle.adam_beta2, oracle.num_train_epochs) == (1.0, 0.95, 1)
    assert "hh" in str(load_config(CONFIGS / "paper" / "sepo-llama2-13b-hh.yaml").data)


def test_the_settings_of_shallow_preference_signals():
    """RLHFlow's for the reward models, and DPO as in OpenRLHF's script."""
    rewards = [load_config(file) for file in sorted((CONFIGS / "paper").glob("shallow-gemma-2b-reward-*.yaml"))]
    assert len(rewards) == 8
    for config in rewards:
        assert (config.method, config.model) == ("reward", "google/gemma-2b-it")
        assert (config.learning_rate, config.weight_decay, config.warmup_ratio) == (1e-5, 0.001, 0.03)
        assert (config.max_tokens, config.num_train_epochs, config.lr_scheduler_type) == (4096, 1, "cosine")
        assert not config.truncation.active
    assert sum(config.eval_data is not None for config in rewards) == 4  # Table 2 is accuracy on its own test pairs
    dpo = load_config(CONFIGS / "paper" / "shallow-llama3.1-8b-dpo-skywork.yaml")
    assert (dpo.model, dpo.loss.beta, dpo.learning_rate) == ("meta-llama/Llama-3.1-8B-Instruct", 0.1, 5e-7)


def test_the_other_papers_settings():
    rrhf, tdpo1, tdpo2 = (load_config(CONFIGS / "paper" / f"{name}.yaml") for name in ("rrhf", "tdpo1", "tdpo2"))
    assert (rrhf.learning_rate, rrhf.num_train_epochs, rrhf.global_batch_size) == (2e-5, 3, 64)
    assert (rrhf.loss.rank_weight, rrhf.loss.sft_weight) == (1, 1)
    assert (tdpo1.loss.beta, tdpo1.loss.kl_scale) == (0.1, 1)
    assert (tdpo2.loss.beta, tdpo2.loss.alpha) == (0.1, 0.5)
    assert (tdpo1.policy_init, tdpo2.policy_init) == ("base", "base")  # they start after SFT


def test_no_paper_file_falls_back_to_the_toy_set():
    for file in (CONFIGS / "paper").iterdir():
        config = load_config(file)
        assert config.data is not None
        assert config.model is not None
