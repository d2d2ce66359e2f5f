"""Chats in a run: reasoning, ends of turn, pairs that become the same, several templates."""

from __future__ import annotations

import json
import logging

import pytest
from transformers import AutoTokenizer

import pyprefopt
from pyprefopt import data
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import DataError
from pyprefopt.stages.data import Data
from tests.data.frames import byte_tokenizer
from tests.pipeline.runs import small
from tests.stages.made import build_data

TRIMMING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt }}"
)


def config(inputs, tmp_path, rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.jinja").write_text(TRIMMING)
    given = {"data": str(path), "eval_data": None, "eval_ratio": 0.0, "chat_template": str(tmp_path / "t.jinja")}
    given |= {"tokenizer": str(byte_tokenizer(tmp_path)), "eos_token": "</s>"}
    return small(inputs, tmp_path / "run", **given | settings)


def row(chosen, rejected, prompt="q"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_pairs_that_become_the_same_are_counted(inputs, tmp_path):
    rows = [row(" c ", "c"), row("c", "d")]
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used\n  identical_pair: 1"):
        build_data(config(inputs, tmp_path, rows), tmp_path / "raised")
    made = build_data(config(inputs, tmp_path, rows, on_error="skip"), tmp_path / "stage")
    assert made["facts"]["rows_rejected"] == 1
    lines = (tmp_path / "stage" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["identical_pair"]


def test_candidates_of_the_same_tokens_are_counted(inputs, tmp_path):
    rows = [{"prompt": "q", "responses": [" c ", "c", "d"], "scores": scores} for scores in ([1, 2, 3], [1, 1, 3])]
    method = {"method": "rrhf", "policy_init": "model", "oracle": {}, "base": {}}
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used\n  identical_pair: 1"):
        build_data(config(inputs, tmp_path, rows, **method), tmp_path / "stage")


def test_reasoning_is_scored_as_the_run_says_and_told_once(inputs, tmp_path, caplog):
    rows = [row("<think>r</think>42", "41"), row("<think>s</think>43", "41", "p")]
    caplog.set_level(logging.INFO, logger="pyprefopt")
    scored = []
    for on in (True, False):
        build_data(config(inputs, tmp_path, rows, score_reasoning=on), tmp_path / str(on))
        store = SegmentStore.open(tmp_path / str(on) / "train")
        scored.append(sum(sum(mask) for mask in store.table["mask"].to_pylist()))
    assert scored[0] > scored[1]
    told = [record.getMessage() for record in caplog.records if "2 responses have reasoning" in record.getMessage()]
    assert len(told) == 2
    assert "which is scored" in told[0]
    assert "not scored" in told[1]


def test_the_policy_is_saved_with_all_templates(inputs, tmp_path):
    folder = tmp_path / "several"
    data.load_tokenizer(byte_tokenizer(tmp_path), eos_token="</s>", chat_template=TRIMMING).save(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools: " + TRIMMING)
    rows = [row("c", "d"), row("e", "f", "p")]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    settings = {"method": "simpo", "base": {}, "oracle": {}, "policy_init": None, "global_batch_size": 2}
    given = {"tokenizer": str(folder), "eos_token": None, "chat_template": None}
    pyprefopt.train(config(inputs, tmp_path, [rows[0], rows[1] | {"tools": tools}], **settings, **given))
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "policy")
    assert saved.chat_template == {"default": TRIMMING, "tool_use": "tools: " + TRIMMING}


def test_another_tool_template_is_another_key(inputs, tmp_path):
    keys = []
    for source in ("a", "b"):
        folder = tmp_path / source
        data.load_tokenizer(byte_tokenizer(tmp_path), eos_token="</s>", chat_template=TRIMMING).save(folder)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(source + TRIMMING)
        settings = {"tokenizer": str(folder), "chat_template": None}
        keys.append(Data.of(config(inputs, tmp_path, [row("c", "d")], **settings)).key)
    assert keys[0] != keys[1]
