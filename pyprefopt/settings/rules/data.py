"""Rules about data."""

from __future__ import annotations

from pyprefopt.settings.config import BaseConfig, RunConfig
from pyprefopt.settings.rules.rule import Rule, on_candidates
from pyprefopt.storage.hub import EMBEDDED_DATA, EMBEDDED_MODEL

DATA_RULES: tuple[Rule, ...] = (
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
        lambda c: c.eval_data is not None and c.eval_ratio not in (0, RunConfig.eval_ratio),
        "eval_ratio holds out a share of data and does not apply beside eval_data; leave out either of them",
        {"model": "model", "data": "train.jsonl", "eval_data": "test.jsonl", "eval_ratio": 0.1},
        "eval_ratio",
    ),
    Rule(
        lambda c: c.eval_steps > 0 and c.data != EMBEDDED_DATA and c.eval_data is None and c.eval_ratio == 0,
        "eval_steps needs something to evaluate on; set eval_data or eval_ratio > 0",
        {"model": "model", "data": "train.jsonl", "eval_ratio": 0.0, "eval_steps": 10},
        "eval_steps",
    ),
    Rule(
        lambda c: c.aspect is not None and not on_candidates(c),
        "aspect gives candidates their scores, and method {c.method} trains on pairs; make them first, pyprefopt pairs "
        "FILE --aspect {c.aspect}, or leave aspect out",
        {"method": "dpo", "model": "model", "data": "raw.jsonl", "aspect": "honesty"},
        "aspect",
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
        "truncation.cut_end says what follows a cut, and nothing is cut; set truncation.ratio or truncation.length, or "
        "leave cut_end out",
        {"truncation": {"cut_end": "eos"}},
        "truncation",
    ),
    Rule(
        lambda c: c.truncation.unit != "tokens" and not c.truncation.active,
        "truncation.unit says what is counted, and nothing is cut; set truncation.ratio or truncation.length, or leave "
        "unit out",
        {"truncation": {"unit": "characters"}},
        "truncation",
    ),
    Rule(
        lambda c: c.truncation.cut_end == "eos" and c.truncation.of_texts,
        "truncation.cut_end eos needs truncation.unit tokens: texts of {c.truncation.unit} are cut before there are "
        "tokens; take cut_end template or none",
        {"truncation": {"ratio": 0.5, "unit": "characters", "cut_end": "eos"}},
        "truncation.cut_end",
    ),
    Rule(
        lambda c: "same" in c.eval_truncation and not c.truncation.active,
        "eval_truncation same cuts test pairs as the training pairs are, and nothing is cut; set truncation.ratio or "
        "truncation.length, or leave eval_truncation out",
        {"eval_truncation": ["same"]},
        "eval_truncation",
    ),
    Rule(
        lambda c: "same" in c.eval_truncation and c.data != EMBEDDED_DATA and c.eval_data is None and c.eval_ratio == 0,
        "eval_truncation needs test pairs; set eval_data or eval_ratio > 0",
        {
            "model": "model",
            "data": "train.jsonl",
            "eval_ratio": 0.0,
            "eval_truncation": ["same"],
            "truncation": {"ratio": 0.5},
        },
        "eval_truncation",
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
        {
            "method": "sft",
            "model": "model",
            "data": "pairs.jsonl",
            "base": {"data": "sft.jsonl"},
            "truncation": {"ratio": 0.5},
        },
        "truncation",
    ),
)
