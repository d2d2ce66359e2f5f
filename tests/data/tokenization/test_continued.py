"""A turn that the prompt begins goes on in the response: one turn, of which the response's part is scored."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pyprefopt.data import load_tokenizer, read_preferences, tokenize, truncate
from pyprefopt.data.tokenization.segments import tokenize_rows

TOKENIZER = Path(__file__).parents[3] / "rust/fuzz/tiny-tokenizer.json"
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRIMMED = MARKED.replace("m.content", "m.content | trim")
ASKED = [{"role": "user", "content": "2+2?"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "The answer is"}]
ANSWERS = {"chosen": " 4, of course.", "rejected": " 5."}


def segments(tmp_path, row, template, **options):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    tokenizer = load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template=template)
    made = tokenize(path, tokenizer, **options)
    assert tokenize(read_preferences(path), tokenizer, **options).equals(made)
    return made


def joined(made):
    prompt, *responses = made["ids"].to_list()
    return [prompt + response for response in responses]


@pytest.mark.parametrize("template", [MARKED, TRIMMED])
def test_the_turn_is_one_turn(tmp_path, template):
    row = {"prompt": BEGUN, **ANSWERS}
    made = segments(tmp_path, row, template)
    whole = {side: BEGUN[-1]["content"] + text for side, text in ANSWERS.items()}
    other = segments(tmp_path, {"prompt": ASKED, **whole}, template)
    assert joined(made) == joined(other)
    assert made["ids"].list.len()[0] > other["ids"].list.len()[0]
    assert made["mask"].list.all().to_list() == [False, True, True]
    for side, line in ((" 4, of course.", 1), (" 5.", 2)):
        assert made["starts"][line].min() == 0
        assert made["ends"][line].max() == len(side)
    assert made["turns"].list.unique().to_list() == [[0, 1], [2], [2]]


def test_an_empty_beginning_is_a_generation_prompt(tmp_path):
    row = {"prompt": [*ASKED, {"role": "assistant", "content": ""}], **ANSWERS}
    plain = segments(tmp_path, {"prompt": ASKED, **ANSWERS}, MARKED)
    assert segments(tmp_path, row, MARKED)["ids"].to_list() == plain["ids"].to_list()


def test_a_cut_counts_the_response_alone(tmp_path):
    frame = pl.DataFrame({"prompt": [BEGUN], **{side: [text] for side, text in ANSWERS.items()}})
    cut = truncate(frame, length=1, unit="words")
    assert (cut["chosen"][0], cut["chosen_cut"][0]) == (" 4", 2)
    tokenizer = load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template=MARKED)
    made = tokenize(cut, tokenizer)
    assert made["ends"].list.max().to_list()[1:] == [2, 3]


def test_what_is_kept_of_a_long_prompt_ends_with_the_begun_turn(tmp_path):
    whole = segments(tmp_path, {"prompt": BEGUN, **ANSWERS}, MARKED)["ids"][0].to_list()
    for overflow in ("keep_end", "keep_start"):
        made = segments(
            tmp_path, {"prompt": BEGUN, **ANSWERS}, MARKED, max_prompt_tokens=len(whole) - 2, prompt_overflow=overflow
        )
        kept = made["ids"][0].to_list()
        assert len(kept) == len(whole) - 2
        assert kept[-5:] == whole[-5:]


def test_a_template_that_hides_the_beginning_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": BEGUN, **ANSWERS}) + "\n")
    template = MARKED.replace("m.content", "m.content | upper")
    tokenizer = load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template=template)
    assert tokenize_rows(read_preferences(path), tokenizer).rejects["reason"].to_list() == ["template"]
    alone = read_preferences(path).with_columns(pl.col("prompt").list.slice(1))
    assert tokenize_rows(alone, tokenizer).rejects["reason"].to_list() == ["empty_prompt"]
