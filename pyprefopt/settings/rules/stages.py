"""Rules about the stages before the policy."""

from __future__ import annotations

from pyprefopt.losses import METHODS
from pyprefopt.settings.config import BaseConfig, OnPolicyConfig, OptimConfig, OracleConfig
from pyprefopt.settings.rules.rule import (
    Rule,
    compares_oracle,
    on_responses,
    only_path,
    oracle_starts_from,
    uses_base,
    uses_oracle,
)

STAGES_RULES: tuple[Rule, ...] = (
    Rule(
        lambda c: not uses_oracle(c) and c.oracle != OracleConfig(),
        "oracle.* is used only by token selection by scores and by rewards dpo and simpo, and method {c.method} with "
        "rewards {c.rewards.name} does neither here; leave oracle out, or set selection.chosen_ratio and "
        "selection.rejected_ratio (and selection.method not to random), or rewards",
        {"method": "dpo", "oracle": {"path": "oracle"}},
        "oracle",
    ),
    Rule(
        lambda c: c.oracle.path is not None and not only_path(c.oracle),
        "oracle.path names a ready checkpoint, so no other oracle.* setting applies; leave out either of them",
        {"method": "sepo", "oracle": {"path": "oracle", "learning_rate": 1e-6}, "base": {"path": "base"}},
        "oracle.learning_rate",
    ),
    Rule(
        lambda c: (
            c.oracle.path is not None and compares_oracle(c) and oracle_starts_from(c) == "base" and c.base.path is None
        ),
        "oracle.path names a ready oracle, whose log-probs are read against those of the model that it was trained "
        "from, and this run would train another base; set base.path to the model that the oracle was trained from "
        "(where that is model itself, policy_init model with base left out will do)",
        {"method": "sepo", "model": "model", "data": "d.jsonl", "oracle": {"path": "oracle"}, "policy_init": "base"},
        "policy_init",
    ),
    Rule(
        lambda c: not uses_base(c) and c.base != BaseConfig(),
        "base.* is not used by method {c.method} with policy_init {c.policy_init}; "
        "leave base out, or set policy_init base",
        {"method": "dpo", "model": "model", "data": "d.jsonl", "base": {"path": "base"}},
        "base",
    ),
    Rule(
        lambda c: c.base.path is not None and not only_path(c.base),
        "base.path names a ready checkpoint, so no other base.* setting applies; leave out either of them",
        {"method": "sepo", "model": "model", "data": "d.jsonl", "base": {"path": "base", "data": "sft.jsonl"}},
        "base.data",
    ),
    Rule(
        lambda c: any(part.sample > 0 and part.fraction == 1 for part in (c.base, c.oracle)),
        "oracle.sample (base.sample) says which share of the pairs the oracle (the base) sees, and with fraction 1 it "
        "sees all; set oracle.fraction (base.fraction) below 1 or leave the sample out",
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
    Rule(
        lambda c: c.on_policy_rounds == 0 and c.on_policy != OnPolicyConfig(),
        "on_policy.* is about pairs that the policy generates, in rounds; set on_policy_rounds (usual 2), or leave it "
        "out",
        {"on_policy": {"samples": 3}},
        "on_policy",
    ),
    Rule(
        lambda c: c.on_policy_rounds > 0 and (on_responses(c) or "reward_head" in METHODS[c.method].needs),
        "on_policy_rounds trains a policy on pairs of its own samples, and method {c.method} trains no policy on "
        "pairs; leave it out, or choose another method",
        {"method": "reward", "on_policy_rounds": 1},
        "on_policy_rounds",
    ),
)
