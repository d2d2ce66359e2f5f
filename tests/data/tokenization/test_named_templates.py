"""A tokenizer with several chat templates: chosen as transformers chooses, and all of them saved."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pyprefopt import data
from pyprefopt.data.tokenization.block import TokenizerParts
from pyprefopt.errors import ConfigError
from tests.data.frames import byte_tokenizer


def source(name):
    return (
        "{{ '" + name + ":' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{{ '<assistant>' if add_generation_prompt }}"
    )


TEMPLATES = {name: source(name) for name in ("default", "tool_use", "rag")}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CHAT = [{"role": "user", "content": "why"}]


def in_config(folder, templates):
    listed = [{"name": name, "template": template} for name, template in templates.items()]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": listed}
    byte_tokenizer(folder).rename(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def in_files(folder, templates):
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(byte_tokenizer(folder)), eos_token="</s>")
    theirs.chat_template = templates
    theirs.save_pretrained(folder)
    assert (folder / "additional_chat_templates" / "tool_use.jinja").exists()
    return folder


@pytest.mark.parametrize("write", [in_config, in_files])
@pytest.mark.parametrize("tools", [None, [], TOOLS])
def test_the_template_is_that_of_transformers(tmp_path, write, tools):
    folder = write(tmp_path, TEMPLATES)
    tokenizer, theirs = data.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(CHAT, tools=tools, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render(CHAT, tools=tools, add_generation_prompt=True) == expected
    assert data.apply_chat_template(CHAT, tokenizer, tools=tools, add_generation_prompt=True) == expected
    assert expected.startswith("default:" if tools is None else "tool_use:")
    row = {"prompt": CHAT, "chosen": "b", "rejected": "c"} | ({} if tools is None else {"tools": tools})
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for given in (tmp_path / "rows.jsonl", data.read_preferences(tmp_path / "rows.jsonl")):
        ids = data.tokenize(given, tokenizer)["ids"]
        assert ids[0].to_list() == theirs(expected, add_special_tokens=False)["input_ids"]
    if tools is None:  # null is no tools
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"tools": None}) + "\n")
        assert data.tokenize(tmp_path / "rows.jsonl", tokenizer)["ids"].equals(ids)


@pytest.mark.parametrize("write", [in_config, in_files])
def test_all_of_them_are_saved(tmp_path, write):
    tokenizer = data.load_tokenizer(write(tmp_path, TEMPLATES))
    tokenizer.save(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == TEMPLATES
    again = data.load_tokenizer(tmp_path / "saved")
    assert again.template_hash == tokenizer.template_hash
    assert again.other_templates == {name: TEMPLATES[name] for name in ("rag", "tool_use")}
    opened = TokenizerParts.of(tokenizer).open()
    assert opened.render(CHAT, tools=TOOLS).startswith("tool_use:")


def test_every_template_counts_for_fingerprint_and_hash(tmp_path):
    found = set()
    for number, other in enumerate(("tool_use", "changed")):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer = data.load_tokenizer(in_config(folder, TEMPLATES | {"tool_use": source(other)}))
        found |= {tokenizer.fingerprint, tokenizer.template_hash}
    assert len(found) == 4


def test_one_may_be_chosen_by_its_name(tmp_path):
    folder = in_config(tmp_path, TEMPLATES)
    tokenizer = data.load_tokenizer(folder, chat_template="rag")
    assert tokenizer.render(CHAT, tools=TOOLS).startswith("rag:")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.apply_chat_template(CHAT, chat_template="rag", tools=TOOLS, tokenize=False).startswith("rag:")
    with pytest.raises(ConfigError, match=r"chat_template must be one of plain, chatml, .*rag.*did you mean 'rag'"):
        data.load_tokenizer(folder, chat_template="rags")


@pytest.mark.parametrize("write", [in_config, in_files])
def test_without_a_default_one_must_be_chosen(tmp_path, write):
    folder = write(tmp_path, {name: TEMPLATES[name] for name in ("tool_use", "rag")})
    with pytest.raises(ConfigError, match=r"none named default; pass chat_template: rag or tool_use$"):
        data.load_tokenizer(folder)
    assert data.load_tokenizer(folder, chat_template="rag").render(CHAT).startswith("rag:")


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    folder = in_config(tmp_path, {"default": source("a"), "../../evil": source("b")})
    with pytest.raises(ConfigError, match=r"name must be one that a file can have, got '\.\./\.\./evil'; rename it"):
        data.load_tokenizer(folder)
