"""Samples of templates that reason, that begin with BOS or end with several tokens, as training reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers import models as library_models

from pyprefopt import data
from pyprefopt.data.reading.frames import CHAT
from pyprefopt.errors import ConfigError
from pyprefopt.generation.decoders import Sample
from pyprefopt.generation.generate import as_table, encode_prompts
from pyprefopt.generation.models import open_models
from pyprefopt.generation.sampler import Generated, Sampling, Wanted, sample_batch
from pyprefopt.modeling import load_model
from tests.data.tokenization.reasoning_templates import REASONING
from tests.modeling.models import ARCHITECTURES, write_config

TEXT = "mulling</think>\n\nhello"


def byte_tokenizer(folder: Path, template: str, *, post: bool = False) -> data.Tokenizer:
    """One token a byte, and BOS and EOS; with `post` the tokenizer itself would put BOS before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(library_models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    if post:
        library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return data.load_tokenizer(folder)


def prompts() -> pl.DataFrame:
    chat = [{"role": "user", "content": "hi", "extra": None}]
    return pl.DataFrame({"row": [0], "prompt": [chat]}, schema={"row": pl.UInt64, "prompt": CHAT})


# Models of harmony write channels in special tokens, which no text holds: a warning says so.
@pytest.mark.parametrize("name", sorted({*REASONING} - {"harmony"}))
def test_a_sample_is_trained_on_in_the_tokens_in_which_it_was_drawn(name: str, tmp_path: Path) -> None:
    """The text behind the prompt is what the model has written, whatever of it the template writes by itself."""
    tokenizer = byte_tokenizer(tmp_path, REASONING[name])
    ids, openings = encode_prompts(prompts(), tokenizer)
    rendered = Library.from_file(str(tmp_path / "tokenizer.json")).decode(ids[0], skip_special_tokens=False)
    said = TEXT if rendered.rstrip().endswith("<think>") else f"<think>\n{TEXT}"
    drawn = [int(token) for token in tokenizer.encode([said])[0]]
    table = as_table([Generated(0, 0, ids=drawn, finished=False)], prompts(), tokenizer, openings)
    row = table.select("prompt", "response", "response_complete").to_dicts()[0]
    row["prompt"] = [{"role": "user", "content": "hi"}]
    segments = data.tokenize(pl.DataFrame([row]), tokenizer, on_error="raise")
    whole = [token for line in segments["ids"].to_list() for token in line]
    read, written = ("".join(bytes_of(own, tokenizer).split()) for own in (whole, [*ids[0], *drawn]))
    assert read.startswith(written), (read, written)  # but for white space around the marks, which templates set


def bytes_of(ids: list[int], tokenizer: data.Tokenizer) -> str:
    return str(Library.from_str(tokenizer.json.decode()).decode(ids, skip_special_tokens=False))


def test_a_template_that_begins_with_bos_gives_one(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    for post in (False, True):
        ids, openings = encode_prompts(prompts(), byte_tokenizer(tmp_path / str(post), template, post=post))
        assert ids[0].count(256) == 1
        assert ids[0][0] == 256
        assert openings == {0: ":"}


def test_special_tokens_inside_a_sample_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    plain = [int(token) for token in tokenizer.encode(["ab"])[0]]
    for ids, finished, said in (([*plain, 257], True, False), ([plain[0], 256, plain[1]], False, True)):
        caplog.clear()
        table = as_table([Generated(0, 0, ids=ids, finished=finished)], prompts(), tokenizer, {0: ""})
        assert table["response"].to_list() == ["ab"]
        assert ("samples hold special tokens that their text lacks, such as <s>" in caplog.text) == said


def test_every_end_token_ends_a_sample(tmp_path: Path) -> None:
    """The tokenizer's, and a list of the model's own generation_config.json."""
    tokenizer = byte_tokenizer(tmp_path / "tokenizer", "{% for m in messages %}{{ m.content }}{% endfor %}")
    settings: dict[str, Any] = {**ARCHITECTURES["llama"], "vocab_size": 260}
    model: Any = load_model(write_config(tmp_path, settings), attention="unpacked")
    model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text((tmp_path / "config.json").read_text())
    opened = open_models(tmp_path / "saved", tokenizer=tokenizer)
    assert {7, 9, 257} <= opened.end_ids
    with torch.no_grad():
        assert opened.policy.start([[1, 2]]).shape == (1, 260)
    with pytest.raises(ConfigError, match=r"prompt 0 has .* the model reads"):
        sample_batch([Wanted(0, 0, [1] * 9)], Sample(), opened.policy, sampling=Sampling(), end_ids=[7], context=9)
