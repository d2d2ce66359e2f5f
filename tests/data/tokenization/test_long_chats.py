"""Chats of many messages: their turns are those that rendering every beginning of the chat shows."""

from __future__ import annotations

import json

import polars as pl
import pytest

from pyprefopt import data
from pyprefopt.data.tokenization.render import SHIPPED, read_chat_template
from pyprefopt.data.tokenization.segments import tokenize_rows
from tests.data.frames import MESSAGES, byte_tokenizer, chat, preferences, trl_templates
from tests.data.jinja import FAMOUS
from tests.data.tokenization.reasoning_templates import REASONING

TEMPLATES = (
    {name: read_chat_template(name) for name in SHIPPED}
    | FAMOUS
    | REASONING
    | {path.stem: path.read_text() for path in trl_templates() if not path.stem.endswith("_training")}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(folder).rename(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return folder


def messages(count, kind):
    """A chat of `count` turns that ends with a user's: plain, with reasoning in contents, or with names."""
    turns = []
    for index in range(count):
        asks = index % 2 == 0
        content = (
            f"q {index}?" if asks else f"<think>t {index}</think>a {index}" if kind == "reasoning" else f" a {index}\n"
        )
        extra = json.dumps({"name": f"n{index}"}) if kind == "named" and index % 3 == 0 else None
        turns.append(("user" if asks else "assistant", content, extra))
    return chat(*turns)


@pytest.mark.parametrize("kind", ["plain", "named", "reasoning"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_of_a_long_prompt(folder, name, kind):
    tokenizer = data.load_tokenizer(folder, chat_template=TEMPLATES[name])
    prompt = messages(41, kind)
    frame = preferences(("", "b", "c")).with_columns(prompt=pl.Series([prompt], dtype=MESSAGES))
    result = tokenize_rows(frame, tokenizer)
    if result.rejects.height:
        pytest.skip(result.rejects["rule"][0])
    plain = [{"role": m["role"], "content": m["content"], **json.loads(m["extra"] or "{}")} for m in prompt]
    text = tokenizer.render(plain, add_generation_prompt=True)
    ids, turns = (result.segments[column][0].to_list() for column in ("ids", "turns"))
    last = 0
    for index in range(40):
        alone = tokenizer.render(plain[: index + 1])
        if text.startswith(alone) and len(alone) > last:
            last = len(alone)
            count = len(tokenizer.encode([alone])[0])
            if ids[:count] == tokenizer.encode([alone])[0].to_list():
                assert (turns[count - 1], turns[count]) == (index, index + 1), (index, alone[-40:])
    assert sorted(set(turns)) == list(range(turns[-1] + 1)) or turns[-1] == 40
    assert turns == sorted(turns)


def test_a_long_chat_needs_no_shape(folder):
    tokenizer = data.load_tokenizer(folder, chat_template="chatml")
    frame = preferences(("", "b", "c"), ("", "b", "c")).with_columns(
        prompt=pl.Series([messages(201, "plain"), messages(21, "plain")], dtype=MESSAGES)
    )
    result = tokenize_rows(frame, tokenizer)
    assert result.rejects.is_empty()
    assert tokenizer.native.template_shapes == 1
