"""Reasoning is trained on with every chat template, or is not, as one option says; each case is told once."""

from __future__ import annotations

import json
import logging
import re
import shutil
from itertools import groupby

import pytest
import tokenizers

from pyprefopt import data
from pyprefopt.data.tokenization.segments import tokenize_rows
from pyprefopt.errors import ConfigError, DataError
from tests.data.frames import byte_tokenizer, trl_templates
from tests.data.tokenization.reasoning_templates import CALLING, REASONING, TRIMMING

QUESTION = [{"role": "user", "content": "6*7?"}]
THOUGHT, OTHER = "six times seven", "a guess"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MARKERS = ("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<Assistant>", "<User>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_tokenizer(folder):
    """A tokenizer whose markers are tokens of their own, as in the models that have them."""
    library = tokenizers.Tokenizer.from_file(str(byte_tokenizer(folder)))
    library.add_special_tokens(list(MARKERS))
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL))
    return folder


def answer(content, **keys):
    return [{"role": "assistant", "content": content, **keys}]


def tokenized(folder, template, chosen, rejected, prompt=QUESTION, score_reasoning=True, **columns):
    tokenizer = data.load_tokenizer(folder, chat_template=template)
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}]
    frame = data.read_preferences(folder_file(folder, rows))
    return tokenize_rows(frame, tokenizer, score_reasoning=score_reasoning)


def folder_file(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def marked(folder, result, kind):
    """A line as text, what is scored in «»."""
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    line = result.segments.filter(kind=kind).to_dicts()[0]
    pairs = zip(line["ids"], line["mask"], strict=True)
    runs = (
        (on, library.decode([i for i, _ in run], skip_special_tokens=False))
        for on, run in groupby(pairs, key=lambda pair: pair[1])
    )
    return "".join(f"«{text}»" if on else text for on, text in runs)


IN_CONTENT = f"<think>\n{THOUGHT}\n</think>\n\n42"
WAYS = {
    "key": answer("42", reasoning_content=THOUGHT),
    "thinking": answer("42", thinking=THOUGHT),
    "content": answer(IN_CONTENT),
    "tight": answer(f"<think>{THOUGHT}</think>42"),
}


@pytest.mark.parametrize("name", REASONING)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("both", [True, False])
def test_reasoning_is_scored_with_every_kind_of_template(folder, name, way, both):
    rejected = (
        answer("41", reasoning_content=OTHER)
        if way in ("key", "thinking")
        else answer(f"<think>\n{OTHER}\n</think>\n\n41")
    )
    result = tokenized(folder, REASONING[name], WAYS[way], rejected if both else answer("41"))
    assert result.rejects.is_empty(), result.rejects["rule"].to_list()
    if name == "smollm3" and way in ("key", "thinking"):
        assert result.notes == {"reasoning_dropped": 1 + both}
        return
    assert result.notes["reasoning"] == 1 + both
    chosen = marked(folder, result, "chosen")
    scored = "".join(part.split("»")[0] for part in chosen.split("«")[1:])
    assert THOUGHT in scored
    assert scored.index(THOUGHT) < scored.index("42")
    assert scored.count(THOUGHT) == scored.count("</think>") or name in ("harmony", "mistral", "gemma")
    unscored = tokenized(folder, REASONING[name], WAYS[way], answer("41"), score_reasoning=False)
    chosen = marked(folder, unscored, "chosen")
    assert THOUGHT in chosen
    scored = "".join(part.split("»")[0] for part in chosen.split("«")[1:])
    assert scored.startswith("42")
    assert THOUGHT not in scored


def test_reasoning_without_its_first_mark_is_reasoning(folder):
    """Content of a model whose generation prompt wrote the first mark, with a template that writes none."""
    chosen = answer(f"{THOUGHT}\n</think>\n\n42")
    whole = tokenized(folder, "chatml", chosen, answer("41"))
    assert whole.notes["reasoning"] == 1
    assert marked(folder, whole, "chosen").startswith(f"«{THOUGHT}\n</think>\n\n42")
    unscored = tokenized(folder, "chatml", chosen, answer("41"), score_reasoning=False)
    assert marked(folder, unscored, "chosen").startswith(f"{THOUGHT}\n</think>\n\n«42")


def test_what_each_shape_becomes(folder):
    """By hand: prompt and responses of templates whose generation prompt begins the reasoning."""

    def texts(name, chosen, rejected):
        result = tokenized(folder, REASONING[name], chosen, rejected)
        return [marked(folder, result, kind) for kind in ("prompt", "chosen", "rejected")]

    plain, thinking = answer("41"), answer("42", reasoning_content=THOUGHT)
    assert texts("r1-distill", answer(IN_CONTENT), answer(f"<think>\n{OTHER}\n</think>\n\n41")) == [
        "<s><User>6*7?<Assistant><think>\n",
        f"«{THOUGHT}\n</think>\n\n42</s>»",
        f"«{OTHER}\n</think>\n\n41</s>»",
    ]
    assert texts("r1-distill", answer(IN_CONTENT), plain) == [
        "<s><User>6*7?<Assistant>",
        f"<think>\n«{THOUGHT}\n</think>\n\n42</s>»",
        "«41</s>»",
    ]
    assert texts("deepseek-r1", thinking, plain)[1] == f"«<think>\n{THOUGHT}\n</think>\n\n42</s>»"
    assert texts("qwen3", thinking, plain) == [
        "<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n",
        f"«<think>\n{THOUGHT}\n</think>\n\n42<|im_end|>»",
        "<think>\n\n</think>\n\n«41<|im_end|>»",
    ]
    assert texts("nemotron", thinking, plain) == [
        "<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n<think>",
        f"\n«{THOUGHT}\n</think>\n42<|im_end|>»",
        "</think>«41<|im_end|>»",
    ]
    assert texts("harmony", thinking, plain)[1:] == [
        f"«<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>»",
        "<|channel|>final<|message|>«41<|return|>»",
    ]
    assert texts("own block", answer(IN_CONTENT), plain)[1] == f"«{THOUGHT}\n</think>\n\n42</assistant>»"
    assert texts("spelled out", answer(f"{THOUGHT}</think>42"), answer(f"{OTHER}</think>41")) == [
        "user: 6*7?\nassistant: <think>",
        f"«{THOUGHT}</think>42»",
        f"«{OTHER}</think>41»",
    ]


@pytest.mark.parametrize("name", ["qwen3", "r1-distill", "glm-4.5", "nemotron", "own block"])
def test_places_in_a_content_that_the_template_takes_apart(folder, name):
    """Every token of reasoning and answer stands where the content has it."""
    for content in (IN_CONTENT, f"<think>{THOUGHT}</think>42", f"  <think>\n\n{THOUGHT} </think>\n 42"):
        result = tokenized(folder, REASONING[name], answer(content), answer("41"))
        line = result.segments.filter(kind="chosen").to_dicts()[0]
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        shown = [library.decode([i], skip_special_tokens=False) for i in line["ids"]]
        placed = [(t, s, e) for t, s, e in zip(shown, line["starts"], line["ends"], strict=True) if s is not None]
        same = [content.encode()[s:e].decode() for t, s, e in placed if e - s == len(t) and t.strip() and t[0] != "<"]
        assert "".join(same) == (THOUGHT + "42").replace(" ", "") or "".join(same) == THOUGHT + "42"
        assert [s for _, s, _ in placed] == sorted(s for _, s, _ in placed)
        assert max(e for _, _, e in placed) == len(content)


def test_reasoning_of_earlier_turns_stays_as_the_template_has_it(folder):
    before = [*QUESTION, *answer(IN_CONTENT), {"role": "user", "content": "And 6*8?"}]
    result = tokenized(folder, REASONING["r1-distill"], answer("<think>\nmore\n</think>\n\n48"), answer("47"), before)
    assert marked(folder, result, "prompt") == "<s><User>6*7?<Assistant>\n\n42</s><User>And 6*8?<Assistant>"
    assert marked(folder, result, "chosen") == "<think>\n«more\n</think>\n\n48</s>»"


def test_reasoning_of_several_messages_is_scored_or_not(folder):
    calls = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    chosen = [
        *answer("", tool_calls=calls, reasoning_content="first"),
        {"role": "tool", "content": "sun"},
        *answer("42", reasoning_content="then"),
    ]
    scored = tokenized(folder, CALLING["thinking"], chosen, answer("41"))
    text = "«<think>first</think>look!</assistant>»\n<tool>sun</tool>\n<assistant>«<think>then</think>42</assistant>»"
    assert marked(folder, scored, "chosen") == text
    unscored = tokenized(folder, CALLING["thinking"], chosen, answer("41"), score_reasoning=False)
    assert marked(folder, unscored, "chosen") == (
        "<think>first</think>«look!</assistant>»\n<tool>sun</tool>\n<assistant><think>then</think>«42</assistant>»"
    )


def test_an_answer_of_reasoning_alone_needs_it_scored(folder):
    endless = answer(f"<think>{THOUGHT}")
    assert tokenized(folder, "chatml", endless, answer("41")).rejects.is_empty()
    result = tokenized(folder, "chatml", endless, answer("41"), score_reasoning=False)
    assert result.rejects["reason"].to_list() == ["no_answer"]
    assert "score_reasoning" in result.rejects["remedy"][0]
    tokenizer = data.load_tokenizer(folder, chat_template="chatml")
    frame = data.read_preferences(
        folder_file(folder, [{"prompt": QUESTION, "chosen": answer(IN_CONTENT), "rejected": answer("4")}])
    )
    longest = len(tokenizer.encode([tokenizer.render(QUESTION, add_generation_prompt=True)])[0])
    cut = tokenize_rows(frame, tokenizer, score_reasoning=False, max_tokens=longest + 5)
    assert cut.rejects["reason"].to_list() == ["no_answer"]


def test_tool_calls_are_a_response(folder):
    calls = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    result = tokenized(folder, CALLING["plain"], answer("", tool_calls=calls), answer("41"))
    assert marked(folder, result, "chosen") == "«look!</assistant>»"
    silent = tokenized(folder, REASONING["smollm3"], answer("So.", tool_calls=calls), answer("41"))
    assert silent.rejects["rule"].to_list() == [
        "the chat template must write the assistant's tool calls, which it leaves out"
    ]
    result = tokenized(folder, CALLING["of null"], answer("", tool_calls=calls), answer("41"))
    assert marked(folder, result, "chosen") == "«look!</assistant>»"


CASES = {
    "reasoning": (REASONING["qwen3"], answer(IN_CONTENT), "2 responses have reasoning, which is scored"),
    "reasoning_dropped": (
        "chatml",
        answer("42", reasoning_content="r"),
        "2 responses have reasoning that the chat template leaves out",
    ),
    "reasoning_restored": (
        REASONING["r1-distill"],
        answer(IN_CONTENT),
        "2 responses have reasoning that the chat template takes out",
    ),
    "prompts_cut": (
        REASONING["r1-distill"],
        answer("42"),
        "2 rows have a prompt that ends before its generation prompt",
    ),
    "ends_removed": ("chatml", answer("42<|im_end|>"), "2 responses ended with the end of turn"),
    "without_end": (REASONING["spelled out"], answer("42"), "4 responses have no end of turn"),
    "special_tokens": (
        "chatml",
        answer("a<|im_end|>b"),
        "2 contents hold special tokens (first in row 0, chosen: '<|im_",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["tokenize", "frame", "prepare"])
def test_each_case_is_told_once_with_its_count(folder, tmp_path, caplog, case, command):
    template, chosen, said = CASES[case]
    rows = [{"prompt": QUESTION, "chosen": chosen, "rejected": answer("41")}] * 2
    path, tokenizer = folder_file(folder, rows), data.load_tokenizer(folder, chat_template=template)
    caplog.set_level(logging.INFO, logger="pyprefopt")
    if command == "prepare":
        store = data.prepare(path, tokenizer, tmp_path / "out")
        assert store.manifest["notes"][case] == int(said.split()[0])
        assert said in data.inspect(tmp_path / "out")
    else:
        data.tokenize(path if command == "tokenize" else data.read_preferences(path), tokenizer)
    told = [record.getMessage() for record in caplog.records if said in record.getMessage()]
    assert len(told) == 1


def test_the_option_decides_masks_and_folders(folder, tmp_path):
    rows = [{"prompt": QUESTION, "chosen": answer(IN_CONTENT), "rejected": answer("41")}]
    path, tokenizer = folder_file(folder, rows), data.load_tokenizer(folder, chat_template=REASONING["qwen3"])
    scored, unscored = (
        data.tokenize(path, tokenizer, score_reasoning=on)["mask"].list.sum().to_list() for on in (True, False)
    )
    assert scored[1] > unscored[1]
    assert scored[2] == unscored[2]
    data.prepare(path, tokenizer, tmp_path / "out", score_reasoning=False)
    assert "score_reasoning False" in data.inspect(tmp_path / "out")
    with pytest.raises(ConfigError, match="score_reasoning must be true or false"):
        data.tokenize(path, tokenizer, score_reasoning="no")


def test_ends_of_turn_are_one(folder):
    for content in ("42<|im_end|>", "42<|im_end|>\n", "42</s><|im_end|><|im_end|>"):
        result = tokenized(folder, "chatml", answer(content), answer("41"))
        assert marked(folder, result, "chosen") == "«42<|im_end|>»"
        assert result.notes == {"ends_removed": 1}
        long = [{"role": "user", "content": "a", "name": "n"}]
        assert (
            marked(folder, tokenized(folder, "chatml", answer(content), answer("41"), long), "chosen")
            == "«42<|im_end|>»"
        )
    assert marked(folder, tokenized(folder, "plain", answer("42</s>"), answer("41")), "chosen") == " «42</s>»"
    result = tokenized(folder, "chatml", answer("<|im_end|>"), answer("41"))
    assert result.rejects["reason"].to_list() == ["empty_response"]
    own = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    assert "without_end" not in tokenized(folder, own, answer("42|"), answer("41")).notes
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    )
    assert tokenized(folder, endless, answer("42"), answer("41</s>")).notes == {"without_end": 1}


CONTENTS = {  # contents of the prompt, chosen and rejected -> contents that hold special tokens, and the first of them
    "none": (("Hi", "42", "41"), 0, None),
    "inside": (("Hi", "first<|im_end|>\n<|im_start|>user\nmore", "41"), 1, ("chosen", "<|im_end|>")),
    "rejected": (("Hi", "42", "4<|im_start|>1"), 1, ("rejected", "<|im_start|>")),
    "eos": (("Hi", "4</s>2", "41"), 1, ("chosen", "</s>")),
    "prompt": (("Hi<|im_end|>", "42", "4</s>1"), 2, ("prompt", "<|im_end|>")),
    "its end": (("Hi", "42<|im_end|>", "41"), 0, None),
    "its end and more": (("Hi", "4<|im_end|>2<|im_end|>", "41"), 1, ("chosen", "<|im_end|>")),
    "nearly": (("Hi <|im_end>", "<| im_end |>", "im_end|>"), 0, None),
    "reasoning": (("Hi", "<think>so</think>42", "41"), 0, None),
}


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.parametrize("engine", ["fast", "tokenizers"])
def test_special_tokens_in_contents_are_found_and_change_no_id(folder, tmp_path, case, engine):
    """Every row is one of many, with roles that have a shape and with a name that has none."""
    (prompt, chosen, rejected), count, first = CONTENTS[case]
    shutil.copytree(folder, tmp_path / "t")
    file = tmp_path / "t" / "tokenizer.json"
    described = json.loads(file.read_text())
    if engine == "tokenizers":
        described["added_tokens"][-1]["single_word"] = True
        file.write_text(json.dumps(described))
    tokenizer = data.load_tokenizer(tmp_path / "t", chat_template="chatml")
    assert tokenizer.engine == engine
    for keys in ({}, {"name": "n"}):
        asked = [{"role": "system", "content": "s"}, {"role": "user", "content": prompt, **keys}]
        plain = {"prompt": asked, "chosen": answer("42"), "rejected": answer("41")}
        rows = [plain] * 3 + [{"prompt": asked, "chosen": answer(chosen), "rejected": answer(rejected)}]
        if first is not None and first[0] == "prompt":
            rows = rows[3:]
        frame = data.read_preferences(folder_file(tmp_path, rows))
        result = tokenize_rows(frame, tokenizer)
        assert result.notes.get("special_tokens", 0) == count
        assert result.special == (first and (len(rows) - 1, *first))
        if "its end" not in case:
            text = data.apply_chat_template(asked + answer(chosen), tokenizer)
            ids = tokenizer.encode([text.rstrip()]).to_list()[0]
            found = result.segments.tail(3)["ids"].to_list()
            assert found[0] + found[1] == ids


def test_the_first_special_token_is_told_over_all_files_and_blocks(folder, tmp_path, caplog):
    plain = {"prompt": QUESTION, "chosen": answer("42"), "rejected": answer("41")}
    for name, at in (("a", 5), ("b", 2)):
        rows = [{**plain, "chosen": answer("4<|im_end|>2")} if row >= at else plain for row in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = data.load_tokenizer(folder, chat_template="chatml")
    said = "9 contents hold special tokens (first in row 5, chosen: '<|im_end|>'): to a model they are no text"
    data.tokenize(str(tmp_path / "*.jsonl"), tokenizer)
    store = data.prepare(str(tmp_path / "*.jsonl"), tokenizer, tmp_path / "out")
    assert [said in record.getMessage() for record in caplog.records].count(True) == 2
    assert store.manifest["special_token"] == {"row": 5, "field": "chosen", "token": "<|im_end|>"}
    assert said in data.inspect(tmp_path / "out")


def test_pairs_that_become_the_same_tokens_are_bad_rows(folder, tmp_path):
    rows = [
        {"prompt": QUESTION, "chosen": answer(" c "), "rejected": answer("c")},
        {"prompt": QUESTION, "chosen": answer("c"), "rejected": answer("d")},
    ]
    path, tokenizer = folder_file(folder, rows), data.load_tokenizer(folder, chat_template=TRIMMING)
    for source in (path, data.read_preferences(path)):
        with pytest.raises(DataError, match="identical_pair: 1"):
            data.tokenize(source, tokenizer)
        assert data.tokenize(source, tokenizer, on_error="skip")["row"].to_list() == [1, 1, 1]
    store = data.prepare(path, tokenizer, tmp_path / "out", on_error="skip")
    assert store.manifest["rejected"] == {"identical_pair": 1}
    assert tokenized(folder, "chatml", answer(" c "), answer("c")).rejects.is_empty()
    sets = [{"prompt": QUESTION, "responses": [" c ", "c", "d"], "scores": scores} for scores in ([1, 2, 3], [1, 1, 3])]
    frame = data.read_candidates(folder_file(folder, sets))
    rejects = tokenize_rows(frame, tokenizer).rejects
    assert rejects.select("row", "field", "reason").rows() == [(0, "responses", "identical_pair")]


FATES = ("plain", "thinking", "in content", "one side thinking", "tools", "tool call")
CALLS = [{"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]  # fmt: skip
ROWS = {
    "plain": (answer("42"), answer("41")),
    "thinking": (answer("42", reasoning_content=THOUGHT), answer("41", reasoning_content=OTHER)),
    "in content": (answer(IN_CONTENT), answer(f"<think>\n{OTHER}\n</think>\n\n41")),
    "one side thinking": (answer("42", reasoning_content=THOUGHT), answer("41")),
    "tools": (
        [*answer("", tool_calls=CALLS), {"role": "tool", "name": "weather", "content": "sun",
         "tool_call_id": "abcdef123"}, *answer("42")],
        answer("41"),
    ),
    "tool call": (answer("", tool_calls=CALLS), answer("41")),
}  # fmt: skip
WORDS = {
    "reasoning": "scored",
    "reasoning_dropped": "left out",
    "reasoning_restored": "put back",
    "prompts_cut": "prompt cut",
    "without_end": "no end",
}


def fate(folder, template, case):
    """What becomes of a row: the notes, or the refusal."""
    chosen, rejected = ROWS[case]
    columns = {"tools": TOOLS} if case.startswith("tool") else {}
    result = tokenized(folder, template, chosen, rejected, **columns)
    if result.rejects.height:
        return f"refused: {result.rejects['rule'][0]}", result
    return ", ".join(WORDS[name] for name in WORDS if name in result.notes) or "as it is", result


def fates(folder):
    """A line a template: its name, and what becomes of each row."""
    return {path.stem: [fate(folder, path, case)[0] for case in FATES] for path in trl_templates()}


ALONE = ("idefics3", "llava_next", "smolvlm")  # they write lists of parts, and no text that is a string


@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_reasoning_is_trained_on_with_the_templates_of_trl(folder, path):
    """Refused are only contents that the template does not write at all, tool calls that it leaves out or refuses."""
    found = {case: fate(folder, path, case)[0] for case in FATES}
    if path.stem.removesuffix("_training") in ALONE:
        assert all(text.startswith("refused") for text in found.values())
        return
    for case in ("plain", "thinking", "in content", "one side thinking"):
        assert not found[case].startswith("refused"), found
    assert "scored" in found["in content"]
    source = re.sub(r"\{#.*?#\}", "", path.read_text(), flags=re.DOTALL)
    knows = any(word in source for word in ("<think>", "</think>", "reasoning", "thinking"))
    assert ("scored" in found["thinking"]) == knows, found
    for case in ("tools", "tool call"):
        why = found[case]
        assert not why.startswith("refused") or "tool calls" in why or "it says" in why


GENERATION = [
    path for path in trl_templates() if "{%- generation" in path.read_text() or "{% generation" in path.read_text()
]


@pytest.mark.parametrize("path", GENERATION, ids=lambda path: path.stem)
@pytest.mark.parametrize("case", ["plain", "thinking", "in content", "tools"])
def test_ids_and_masks_are_those_of_transformers(folder, path, case):
    """The ids are the same; scored is what the template's generation block holds, but for an empty block of reasoning,
    a header, and what the generation prompt writes."""
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SPECIAL)
    what, result = fate(folder, path, case)
    if what.startswith("refused"):
        pytest.skip(f"{path.stem}: {what}")
    if "put back" in what:
        pytest.skip(f"{path.stem} leaves the reasoning out, which is put back: {what}")
    chosen, _ = ROWS[case]
    made = theirs.apply_chat_template(
        [*QUESTION, *chosen], chat_template=path.read_text(), tools=TOOLS if case == "tools" else None,
        return_assistant_tokens_mask=True, return_dict=True, tokenize=True,
    )  # fmt: skip
    ids, mask = made["input_ids"], [bool(on) for on in made["assistant_masks"]]
    prompt, line = result.segments["ids"][0].to_list(), result.segments.to_dicts()[1]
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def text(ids):
        return library.decode(ids, skip_special_tokens=False)

    ours = [*prompt, *line["ids"]]
    if result.tokenized_apart:  # as generation sees them: the same text in other tokens
        assert text(ids).startswith(text(ours))
        return
    assert ids[: len(ours)] == ours
    both = [*zip(ours, mask, [False] * len(prompt) + line["mask"], strict=False)]
    assert text([i for i, on, own in both if own and not on]).strip() in ("", "<|tool_response>")
    missed = text([i for i, on, own in both if on and not own])
    for header in HEADERS:
        missed = missed.replace(header, "")
    assert not missed.strip(" \n<")


HEADERS = (
    "<think>", "</think>", "<|start|>assistant", "<|channel|>final<|message|>", " to=user<|message|>",
    "<\uff5cAssistant\uff5c>", "<\uff5ctool\u2581outputs\u2581end\uff5c>",
)  # fmt: skip


def test_the_table_of_fates_has_a_line_a_template(folder):
    """`python -m tests.data.tokenization.test_reasoning` prints it."""
    lines = table(folder)
    assert len(lines) == 2 + len(trl_templates())
    assert all(line.count("|") == len(FATES) + 2 for line in lines)


def table(folder):
    """The templates that TRL ships and what becomes of each row, as a table in Markdown."""
    rows = [("template", *FATES), ("---",) * (len(FATES) + 1)]
    rows += [(name, *(text.replace("|", "/")[:60] for text in found)) for name, found in fates(folder).items()]
    return ["| " + " | ".join(row) + " |" for row in rows]


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        print("\n".join(table(make_tokenizer(Path(directory)))))
