"""Rules about how a run computes."""

from __future__ import annotations

from pyprefopt.losses import METHODS
from pyprefopt.settings.config import LoraConfig
from pyprefopt.settings.rules.rule import Rule, on_responses, starts_from_weights, uses_base

RUNNING_RULES: tuple[Rule, ...] = (
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
        lambda c: c.lora.load_in_4bit and not starts_from_weights(c),
        "lora.load_in_4bit needs model to be a checkpoint, whose weights it quantizes, got {c.model!r}; set model to a "
        "directory or hub name with weights (or base.path, with policy_init base), or leave load_in_4bit out",
        {"method": "dpo", "model": "config.json", "data": "d.jsonl", "lora": {"r": 8, "load_in_4bit": True}},
        "lora.load_in_4bit",
    ),
    Rule(
        lambda c: c.lora.load_in_4bit and c.base.path is None and uses_base(c) and not on_responses(c),
        "lora.load_in_4bit does not apply where the run trains its base: packed anew for the next training, the base "
        "would lose much of what it has learned; set base.path to a checkpoint (that of model will do), or policy_init "
        "model where no oracle is trained",
        {
            "method": "dpo",
            "model": "model",
            "data": "d.jsonl",
            "policy_init": "base",
            "lora": {"r": 8, "load_in_4bit": True},
        },
        "policy_init",
    ),
    Rule(
        lambda c: c.lora.load_in_4bit and c.zero_stage == 3,
        "lora.load_in_4bit needs zero_stage <= 2, got 3, which takes weights apart that are packed; set zero_stage 2 "
        "or leave load_in_4bit out",
        {"method": "dpo", "model": "model", "data": "d.jsonl", "zero_stage": 3, "lora": {"r": 8, "load_in_4bit": True}},
        "zero_stage",
    ),
)
