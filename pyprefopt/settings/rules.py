"""Rules about several settings at once, as one declared table. `resolve` applies it; a test walks every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pyprefopt.data.batching.rule import Selection
from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.rewards import Contrastive, Reward, SimPOReward
from pyprefopt.settings.config import (
    BaseConfig,
    LoraConfig,
    OptimConfig,
    OracleConfig,
    RunConfig,
)
from pyprefopt.storage.hub import EMBEDDED_DATA, EMBEDDED_MODEL, is_bare


@dataclass(frozen=True)
class Rule:
    """One row: what breaks it, the text of its error, and an example that breaks it only through `culprit`."""

    breaks: Callable[[RunConfig], bool]
    message: str  # setting, rule and remedy; `{c}` is the config
    example: dict[str, Any]  # settings as for `resolve.configure`
    culprit: str  # the dotted setting of the example without which it is fine


def _needs(c: RunConfig, need: str) -> bool:
    return need in METHODS[c.method].needs


def _on_responses(c: RunConfig) -> bool:
    return METHODS[c.method].trains_on == "responses"


def uses_oracle(c: RunConfig) -> bool:
    """Whether an oracle scores tokens: for the token rewards, or, without these, for the selection."""
    return bool(c.rewards.asks & {"oracle", "simpo"}) or (c.rewards.name is None and c.selection.needs_scores)


def _on_candidates(c: RunConfig) -> bool:
    return METHODS[c.method].trains_on == "candidates"


def _uses_base(c: RunConfig) -> bool:
    return "base" in c.rewards.asks or uses_oracle(c) or c.policy_init == "base" or _on_responses(c)


def _starts_from_weights(c: RunConfig) -> bool:
    """Whether the first training starts from a checkpoint, and not from a configuration alone."""
    first = c.base.path if c.policy_init == "base" and c.base.path is not None else c.model
    return first is not None and not is_bare(first)


def _uses_rewards(c: RunConfig) -> bool:
    return "token_rewards" in METHODS[c.method].needs or (c.selection.needs_scores and not _on_responses(c))


def _only_path(section: BaseConfig | OracleConfig) -> bool:
    return replace(section, path=None) == type(section)()


def _not_share_k(selection: Selection) -> bool:
    """Whether other numbers of tokens are selected than k of a response, beyond rounding."""
    return selection.minimum > 1 or bool(selection.excluded_ids)


RULES: tuple[Rule, ...] = (
    # what is trained
    Rule(
        lambda c: type(c.loss) is not METHODS[c.method],  # one family's methods inherit from each other
        "loss must be the settings of method {c.method}, got {c.loss!r}; leave it out for the method's defaults",
        {"method": "dpo", "loss": METHODS["simpo"]()},
        "loss",
    ),
    Rule(
        lambda c: _on_responses(c) and c.selection.active,
        "selection does not apply to method {c.method}, which trains on whole responses; leave selection out",
        {"method": "sft", "selection": {"chosen_ratio": 0.3, "rejected_ratio": 0.3}},
        "selection",
    ),
    Rule(
        lambda c: _on_candidates(c) and c.selection.active,
        "selection takes other tokens of chosen than of rejected responses, and method {c.method} trains on "
        "candidates, which are neither; leave selection out",
        {"method": "rrhf", "selection": {"chosen_ratio": 0.3, "rejected_ratio": 0.3}},
        "selection",
    ),
    Rule(
        lambda c: _needs(c, "reward_head") and c.selection.active,
        "selection takes tokens whose log-probs count, and method {c.method} trains a score of whole responses; leave "
        "selection out",
        {"method": "reward", "selection": {"chosen_ratio": 0.3, "rejected_ratio": 0.3}},
        "selection",
    ),
    Rule(
        lambda c: _needs(c, "reward_head") and c.lora.r > 0,
        "lora.r does not apply to method {c.method}, whose new head an adapter cannot hold; leave lora out",
        {"method": "reward", "lora": {"r": 8}},
        "lora",
    ),
    Rule(
        lambda c: _needs(c, "ref_kl") and c.zero_stage == 3,
        "zero_stage 3 does not apply to method {c.method}: the reference beside the policy is whole on every rank, and "
        "its head is read together with the policy's; set zero_stage 2",
        {"method": "tdpo2", "zero_stage": 3},
        "zero_stage",
    ),
    Rule(
        lambda c: _on_responses(c) and c.policy_init is not None,
        "policy_init does not apply to method {c.method}, which starts from model; leave policy_init out",
        {"method": "sft", "policy_init": "base"},
        "policy_init",
    ),
    Rule(
        lambda c: _on_responses(c) and replace(c.base, data="chosen") != BaseConfig(),
        "base.* (but base.data) does not apply to method {c.method}, whose optimisation is at the top level: "
        "write learning_rate instead of base.learning_rate, and model instead of base.path",
        {"method": "sft", "base": {"learning_rate": 1e-5}},
        "base",
    ),
    Rule(
        lambda c: c.policy_init == "model" and c.model == EMBEDDED_MODEL,
        "policy_init model needs model: the embedded model has no trained weights; set model or leave policy_init out",
        {"method": "dpo", "policy_init": "model"},
        "policy_init",
    ),
    Rule(
        lambda c: c.selection.minimum < 1,
        "selection.minimum must be >= 1, got {c.selection.minimum}; a response needs a token to train on",
        {"method": "dpo", "selection": {"chosen_ratio": 0.3, "rejected_ratio": 0.3, "minimum": 0}},
        "selection.minimum",
    ),
    Rule(
        lambda c: c.selection.method == "threshold" and c.selection.ratios != (None, None),
        "selection.chosen_ratio and selection.rejected_ratio do not apply to selection.method threshold; leave them "
        "out, or set selection.method top_k",
        {"method": "dpo", "selection": {"method": "threshold", "chosen_ratio": 0.3, "rejected_ratio": 0.3}},
        "selection.method",
    ),
    Rule(
        lambda c: c.selection.method != "threshold" and c.selection.thresholds != (None, None),
        "selection.chosen_threshold and selection.rejected_threshold need selection.method threshold, got "
        "{c.selection.method}; set it or leave them out",
        {"method": "dpo", "selection": {"chosen_threshold": 0.1, "rejected_threshold": 0.1}},
        "selection",
    ),
    Rule(
        lambda c: None in c.selection.thresholds and c.selection.method == "threshold",
        "selection.method threshold needs selection.chosen_threshold and selection.rejected_threshold, got "
        "{c.selection.chosen_threshold} and {c.selection.rejected_threshold}; set both or leave method out",
        {"method": "dpo", "selection": {"method": "threshold", "chosen_threshold": 0.1}},
        "selection",
    ),
    Rule(
        lambda c: c.selection.method == "threshold" and c.loss.divides_by_ratio,
        "loss.normalizer ratio divides by |y| k, and selection.method threshold has no k; set loss.normalizer selected",
        {"method": "sepo", "selection": {"method": "threshold", "chosen_threshold": 0.1, "rejected_threshold": 0.1}},
        "selection",
    ),
    Rule(
        lambda c: _not_share_k(c.selection) and c.loss.divides_by_ratio,
        "loss.normalizer ratio divides by |y| k, but with selection.minimum {c.selection.minimum} and "
        "selection.excluded_ids {c.selection.excluded_ids} the share of tokens selected is not k; set loss.normalizer "
        "selected, or leave minimum and excluded_ids out",
        {"method": "sepo", "selection": {"minimum": 2}},
        "selection",
    ),
    Rule(
        lambda c: (c.selection.chosen_ratio is None) != (c.selection.rejected_ratio is None),
        "selection.chosen_ratio and selection.rejected_ratio must both be set, got {c.selection.chosen_ratio} and "
        "{c.selection.rejected_ratio}; 1.0 keeps all tokens of a side",
        {"method": "dpo", "selection": {"chosen_ratio": 0.3}},
        "selection",
    ),
    Rule(
        lambda c: c.selection.rounding != "half_up" and c.selection.ratios == (None, None),
        "selection.rounding needs selection.chosen_ratio and selection.rejected_ratio; set them or leave rounding out",
        {"method": "dpo", "selection": {"rounding": "floor"}},
        "selection",
    ),
    Rule(
        lambda c: c.selection != Selection() and not c.selection.active,
        "selection.method, minimum and excluded_ids need selection.chosen_ratio and selection.rejected_ratio (or "
        "thresholds); set them or leave selection out",
        {"method": "dpo", "selection": {"minimum": 2}},
        "selection",
    ),
    # token rewards
    Rule(
        lambda c: c.rewards.name is not None and _on_candidates(c) and not _needs(c, "token_rewards"),
        "rewards {c.rewards.name} does not apply to method {c.method}, which ranks candidates by their scores; leave "
        "rewards out",
        {"method": "rrhf", "rewards": {"name": "random"}},
        "rewards",
    ),
    Rule(
        lambda c: c.rewards.name is not None and not _uses_rewards(c),
        "rewards {c.rewards.name} is used only by methods that need token rewards and by selection by scores, and "
        "method {c.method} does neither here; leave rewards out, or set selection.chosen_ratio and "
        "selection.rejected_ratio (and selection.method not to random)",
        {"method": "dpo", "rewards": {"name": "random"}},
        "rewards",
    ),
    Rule(
        lambda c: (
            isinstance(c.rewards, Reward)
            and c.rewards.noise_seed != 0
            and c.rewards.noise_std == 0
            and "noise" not in c.rewards.reads
        ),
        "rewards.noise_seed needs rewards.noise_std > 0 or rewards random, got noise_std {c.rewards.noise_std}; set it "
        "or leave noise_seed out",
        {"method": "sepo", "rewards": {"name": "dpo", "noise_seed": 1}},
        "rewards.noise_seed",
    ),
    Rule(
        lambda c: (
            isinstance(c.rewards, SimPOReward) and c.rewards.gamma != SimPOReward.gamma and c.oracle.path is not None
        ),
        "rewards.gamma is a setting of the oracle's training, and oracle.path names a ready one; leave out either",
        {"method": "sepo", "rewards": {"name": "simpo", "beta": 2.5, "gamma": 1.0}, "oracle": {"path": "oracle"}},
        "rewards.gamma",
    ),
    Rule(
        lambda c: c.rewards.name == "simpo" and c.oracle.loss != OracleConfig().loss,
        "oracle.loss.* is of an oracle trained by DPO, and that of rewards simpo is trained by SimPO; use rewards.beta "
        "and rewards.gamma",
        {"method": "sepo", "rewards": {"name": "simpo"}, "oracle": {"loss": {"beta": 0.5}}},
        "oracle.loss",
    ),
    Rule(
        lambda c: isinstance(c.rewards, Contrastive) and c.rewards.max_tokens > c.max_tokens_per_batch,
        "rewards.max_tokens must be <= max_tokens_per_batch ({c.max_tokens_per_batch}), got {c.rewards.max_tokens}; "
        "lower it or raise max_tokens_per_batch",
        {"method": "sepo", "rewards": {"name": "contrastive", "max_tokens": 8192}, "max_tokens_per_batch": 4096},
        "rewards.max_tokens",
    ),
    # stages
    Rule(
        lambda c: not uses_oracle(c) and c.oracle != OracleConfig(),
        "oracle.* is used only by token selection by scores and by rewards dpo and simpo, and method {c.method} with "
        "rewards {c.rewards.name} does neither here; leave oracle out, or set selection.chosen_ratio and "
        "selection.rejected_ratio (and selection.method not to random), or rewards",
        {"method": "dpo", "oracle": {"path": "oracle"}},
        "oracle",
    ),
    Rule(
        lambda c: c.oracle.path is not None and not _only_path(c.oracle),
        "oracle.path names a ready checkpoint, so no other oracle.* setting applies; leave out either of them",
        {"method": "sepo", "oracle": {"path": "oracle", "learning_rate": 1e-6}},
        "oracle.learning_rate",
    ),
    Rule(
        lambda c: not _uses_base(c) and c.base != BaseConfig(),
        "base.* is not used by method {c.method} with policy_init {c.policy_init}; "
        "leave base out, or set policy_init base",
        {"method": "dpo", "model": "model", "base": {"path": "base"}},
        "base",
    ),
    Rule(
        lambda c: c.base.path is not None and not _only_path(c.base),
        "base.path names a ready checkpoint, so no other base.* setting applies; leave out either of them",
        {"method": "sepo", "data": "d.jsonl", "base": {"path": "base", "data": "sft.jsonl"}},
        "base.data",
    ),
    Rule(
        lambda c: c.oracle.sample > 0 and c.oracle.fraction == 1,
        "oracle.sample says which share of the pairs the oracle sees, and with oracle.fraction 1 it sees all; set "
        "oracle.fraction below 1 or leave oracle.sample out",
        {"oracle": {"sample": 1}},
        "oracle.sample",
    ),
    Rule(
        lambda c: any(
            part.until_converged is None and part.convergence_window != OptimConfig.convergence_window
            for part in (c, c.base, c.oracle)
        ),
        "convergence_window is the number of steps that until_converged averages the loss over; set until_converged "
        "beside it or leave it out",
        {"convergence_window": 5},
        "convergence_window",
    ),
    Rule(
        lambda c: any(
            part.until_converged is not None and 0 < part.max_steps < part.convergence_window
            for part in (c, c.base, c.oracle)
        ),
        "convergence_window must be <= max_steps, since until_converged takes the mean of so many steps; raise "
        "max_steps or lower convergence_window (of base.* and oracle.* too)",
        {"until_converged": 0.1, "max_steps": 3},
        "max_steps",
    ),
    # data
    Rule(
        lambda c: c.base.data != BaseConfig.data and c.data == EMBEDDED_DATA,
        "base.data needs data: the embedded set has its own SFT split; add data or leave base.data out",
        {"base": {"data": "instructions.jsonl"}},
        "base.data",
    ),
    Rule(
        lambda c: c.eval_data is not None and c.data == EMBEDDED_DATA,
        "eval_data needs data: the embedded set has its own test split; add data or leave eval_data out",
        {"eval_data": "test.jsonl"},
        "eval_data",
    ),
    Rule(
        lambda c: c.eval_data is not None and c.eval_ratio != RunConfig.eval_ratio,
        "eval_ratio holds out a share of data and does not apply beside eval_data; leave out either of them",
        {"data": "train.jsonl", "eval_data": "test.jsonl", "eval_ratio": 0.1},
        "eval_ratio",
    ),
    Rule(
        lambda c: c.eval_steps > 0 and c.data != EMBEDDED_DATA and c.eval_data is None and c.eval_ratio == 0,
        "eval_steps needs something to evaluate on; set eval_data or eval_ratio > 0",
        {"data": "train.jsonl", "eval_ratio": 0.0, "eval_steps": 10},
        "eval_steps",
    ),
    Rule(
        lambda c: c.truncation.rounding != "ceil" and c.truncation.ratio is None,
        "truncation.rounding needs truncation.ratio; set it or leave rounding out",
        {"truncation": {"rounding": "floor"}},
        "truncation",
    ),
    Rule(
        lambda c: c.truncation.ratio_base != "own" and c.truncation.ratio is None,
        "truncation.ratio_base needs truncation.ratio, which is a share of it; set it or leave ratio_base out",
        {"truncation": {"tokens": 5, "ratio_base": "shared_min"}},
        "truncation.ratio_base",
    ),
    Rule(
        lambda c: c.truncation.cut_end != "none" and not c.truncation.active,
        "truncation.cut_end says what follows a cut, and nothing is cut; set truncation.ratio or truncation.tokens, or "
        "leave cut_end out",
        {"truncation": {"cut_end": "eos"}},
        "truncation",
    ),
    Rule(
        lambda c: c.trust_remote_code and c.model == EMBEDDED_MODEL,
        "trust_remote_code needs model: the embedded model has no code of its own; leave it out",
        {"trust_remote_code": True},
        "trust_remote_code",
    ),
    Rule(
        lambda c: c.method == "sft" and c.base.data != "chosen" and c.truncation != type(c.truncation)(),
        "truncation cuts the responses of pairs, and method sft with base.data trains on none; leave truncation out",
        {"method": "sft", "data": "pairs.jsonl", "base": {"data": "sft.jsonl"}, "truncation": {"ratio": 0.5}},
        "truncation",
    ),
    # how it runs
    Rule(
        lambda c: c.dtype == "bfloat16" and c.zero_stage == 0,
        "dtype bfloat16 needs zero_stage >= 1, which keeps float32 master weights, got zero_stage 0; set zero_stage 1",
        {"dtype": "bfloat16"},
        "dtype",
    ),
    Rule(
        lambda c: (c.per_device_train_batch_size or 0) > c.global_batch_size,
        "per_device_train_batch_size must be <= global_batch_size ({c.global_batch_size}), got "
        "{c.per_device_train_batch_size}; leave it out to let max_tokens_per_batch decide",
        {"global_batch_size": 8, "per_device_train_batch_size": 16},
        "per_device_train_batch_size",
    ),
    Rule(
        lambda c: c.compile == "on" and c.zero_stage == 3,
        "compile on needs zero_stage <= 2, got 3: its hooks, which gather each layer's weights, break what is "
        "compiled; set zero_stage 2 or leave compile out",
        {"compile": "on", "zero_stage": 3},
        "compile",
    ),
    Rule(
        lambda c: c.head_kernel == "triton" and bool(METHODS[c.method].needs & {"ref_kl", "reward_head"}),
        "head_kernel triton reads log-probs, and method {c.method} needs what it does not give; set head_kernel torch",
        {"method": "tdpo2", "head_kernel": "triton"},
        "head_kernel",
    ),
    Rule(
        lambda c: c.lora.r == 0 and c.lora != LoraConfig(),
        "lora.* needs lora.r > 0, got 0; set lora.r (usual 8 to 64) or leave the others out",
        {"lora": {"alpha": 32}},
        "lora",
    ),
    Rule(
        lambda c: c.lora.load_in_4bit and not _starts_from_weights(c),
        "lora.load_in_4bit needs model to be a checkpoint, whose weights it quantizes, got {c.model!r}; set model to a "
        "directory or hub name with weights (or base.path, with policy_init base), or leave load_in_4bit out",
        {"method": "dpo", "model": "config.json", "lora": {"r": 8, "load_in_4bit": True}},
        "lora.load_in_4bit",
    ),
    Rule(
        lambda c: c.lora.load_in_4bit and c.base.path is None and _uses_base(c) and not _on_responses(c),
        "lora.load_in_4bit does not apply where the run trains its base: packed anew for the next training, the base "
        "would lose much of what it has learned; set base.path to a checkpoint (that of model will do), or policy_init "
        "model where no oracle is trained",
        {"method": "dpo", "model": "model", "policy_init": "base", "lora": {"r": 8, "load_in_4bit": True}},
        "policy_init",
    ),
    Rule(
        lambda c: c.lora.load_in_4bit and c.zero_stage == 3,
        "lora.load_in_4bit needs zero_stage <= 2, got 3, which takes weights apart that are packed; set zero_stage 2 "
        "or leave load_in_4bit out",
        {"method": "dpo", "model": "model", "zero_stage": 3, "lora": {"r": 8, "load_in_4bit": True}},
        "zero_stage",
    ),
)


def check_compatible(config: RunConfig) -> None:
    """Raise a ConfigError for the first row of RULES that the config breaks."""
    for rule in RULES:
        if rule.breaks(config):
            raise ConfigError(rule.message.format(c=config))
