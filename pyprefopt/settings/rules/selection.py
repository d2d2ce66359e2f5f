"""Rules about what is trained, and on which tokens."""

from __future__ import annotations

from dataclasses import replace

from pyprefopt.data.batching.rule import Selection
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import BaseConfig
from pyprefopt.settings.rules.rule import Rule, needs, not_share_k, on_candidates, on_responses
from pyprefopt.storage.hub import EMBEDDED_MODEL

SELECTION_RULES: tuple[Rule, ...] = (
    Rule(
        lambda c: type(c.loss) is not METHODS[c.method],  # one family's methods inherit from each other
        "loss must be the settings of method {c.method}, got {c.loss!r}; leave it out for the method's defaults",
        {"method": "dpo", "loss": METHODS["simpo"]()},
        "loss",
    ),
    Rule(
        lambda c: on_responses(c) and c.selection.active,
        "selection does not apply to method {c.method}, which trains on whole responses; leave selection out",
        {"method": "sft", "selection": {"chosen_ratio": 0.3, "rejected_ratio": 0.3}},
        "selection",
    ),
    Rule(
        lambda c: on_candidates(c) and c.selection.active,
        "selection takes other tokens of chosen than of rejected responses, and method {c.method} trains on "
        "candidates, which are neither; leave selection out",
        {"method": "rrhf", "selection": {"chosen_ratio": 0.3, "rejected_ratio": 0.3}},
        "selection",
    ),
    Rule(
        lambda c: needs(c, "reward_head") and c.selection.active,
        "selection takes tokens whose log-probs count, and method {c.method} trains a score of whole responses; leave "
        "selection out",
        {"method": "reward", "selection": {"chosen_ratio": 0.3, "rejected_ratio": 0.3}},
        "selection",
    ),
    Rule(
        lambda c: needs(c, "reward_head") and c.lora.load_in_4bit,
        "lora.load_in_4bit does not apply to method {c.method}, whose head is new; set lora.load_in_4bit false",
        {"method": "reward", "lora": {"r": 8, "load_in_4bit": True}},
        "lora",
    ),
    Rule(
        lambda c: needs(c, "ref_kl") and c.zero_stage == 3,
        "zero_stage 3 does not apply to method {c.method}: the reference beside the policy is whole on every rank, and "
        "its head is read together with the policy's; set zero_stage 2",
        {"method": "tdpo2", "zero_stage": 3},
        "zero_stage",
    ),
    Rule(
        lambda c: on_responses(c) and c.policy_init is not None,
        "policy_init does not apply to method {c.method}, which starts from model; leave policy_init out",
        {"method": "sft", "policy_init": "base"},
        "policy_init",
    ),
    Rule(
        lambda c: on_responses(c) and replace(c.base, data="chosen") != BaseConfig(),
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
        lambda c: not_share_k(c.selection) and c.loss.divides_by_ratio,
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
)
