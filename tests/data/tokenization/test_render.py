"""Chat templates in Rust against transformers' own rendering, byte for byte."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from pyprefopt.data.tokenization.render import SHIPPED, apply_chat_template, read_chat_template
from pyprefopt.data.tokenization.segments import load_tokenizer
from pyprefopt.errors import ConfigError
from tests.data.frames import byte_tokenizer, trl_templates
from tests.data.jinja import BOMBS, FAMOUS, LANGUAGE

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the <weather> & more",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CHATS = {
    "one turn": [{"role": "user", "content": "What is 2 + 2?"}],
    "answered": [
        {"role": "user", "content": " Hi  "},
        {"role": "assistant", "content": "Grüß dich, 'you' & \"me\" <b>\n"},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a prime."},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "\n11"},
    ],
    "reasoning": [
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": "42", "reasoning_content": "6 * 7 is 42"},
    ],
    "tool calls": [
        {"role": "user", "content": "Weather in Zürich?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "abcdef123",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Zürich"}},
                }
            ],
        },
        {"role": "tool", "name": "weather", "content": "sunny", "tool_call_id": "abcdef123"},
        {"role": "assistant", "content": "It is sunny."},
    ],
}


def by_transformers(source, messages, **variables):
    rendered, _ = render_jinja_template([messages], chat_template=source, **variables)
    return rendered[0]


def both(source, messages, add_generation_prompt, tools=None, **kwargs):
    """The two renderings; a refusal counts as None."""
    try:
        theirs = by_transformers(
            source, messages, tools=tools, add_generation_prompt=add_generation_prompt, **SPECIAL, **kwargs
        )
    except Exception:
        theirs = None
    try:
        ours = apply_chat_template(
            messages,
            source,
            special_tokens=SPECIAL,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **kwargs,
        )
    except ConfigError:
        ours = None
    return ours, theirs


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_templates_render_as_in_transformers(name, add_generation_prompt):
    source = read_chat_template(name)
    for case, messages in CHATS.items():
        ours, theirs = both(source, messages, add_generation_prompt)
        assert ours == theirs, case
        assert (ours is None) == (case == "tool calls")
    assert both(source, CHATS["one turn"], add_generation_prompt, tools=TOOLS) == (None, None)


def test_plain_reads_as_promised():
    chat = CHATS["system"][:3]
    text = apply_chat_template(chat, "plain", special_tokens={"eos_token": "</s>"})
    assert text == "System: Be brief.\n\nUser: Name a prime.\n\nAssistant: 7</s>"
    prompt = apply_chat_template(chat[:2], "plain", special_tokens={"eos_token": "</s>"}, add_generation_prompt=True)
    assert prompt == "System: Be brief.\n\nUser: Name a prime.\n\nAssistant:"
    assert text.startswith(prompt + " ")


def test_chatml_reads_as_promised():
    text = apply_chat_template(CHATS["answered"], "chatml", special_tokens={})
    assert text.startswith("<|im_start|>user\n Hi  <|im_end|>\n<|im_start|>assistant\nGrüß")
    assert text.endswith("<|im_end|>\n")


ABSENT = pytest.param(Path("none"), marks=pytest.mark.skip(reason="TRL, which ships the templates, is not installed"))


@pytest.mark.parametrize("path", trl_templates() or [ABSENT], ids=lambda path: path.stem)
def test_templates_of_trl(path):
    source = path.read_text()
    different, rendered = [], 0
    for case, messages in CHATS.items():
        for add_generation_prompt in (False, True):
            for tools in (None, TOOLS):
                ours, theirs = both(source, messages, add_generation_prompt, tools)
                rendered += ours is not None
                if ours != theirs:
                    different.append((case, add_generation_prompt, tools is not None, ours, theirs))
    assert not different
    assert rendered >= 4  # refusals count as equal, but not all may be refusals


@pytest.mark.parametrize("name", FAMOUS)
def test_famous_templates(name):
    rendered = 0
    for case, messages in CHATS.items():
        for add_generation_prompt in (False, True):
            ours, theirs = both(FAMOUS[name], messages, add_generation_prompt, TOOLS if "tool" in case else None)
            assert ours == theirs, case
            rendered += ours is not None
    assert rendered >= 4


ODD = "\x1c A b\x1f\u3000c\x0bd\r\ne\x85 \u200b\U000e0001ß ǆ\n"


@pytest.mark.parametrize("source", LANGUAGE)
def test_the_language_of_templates(source):
    value = {"big": 1e16, "small": 1e-7, "int": 3, "text": "ü\n\u2028</script>", "nested": [{}, [], None, False]}
    ours, theirs = both(source, CHATS["one turn"], False, value=value, odd=ODD)
    assert ours == theirs
    assert (ours is None) == ("raise_exception" in source)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=20), name=st.sampled_from(SHIPPED))
def test_any_text_renders_the_same(text, name):
    ours, theirs = both(read_chat_template(name), [{"role": "user", "content": text}], True)
    assert ours == theirs


@settings(max_examples=60, deadline=None)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
        max_leaves=8,
    )
)
def test_tojson_is_pythons(value):
    ours, theirs = both("{{ value | tojson }}", CHATS["one turn"], False, value=value)
    assert ours == theirs


def test_a_refusal_speaks_in_the_templates_words():
    with pytest.raises(ConfigError, match="no place for tools"):
        apply_chat_template(CHATS["one turn"], "plain", tools=TOOLS)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'chatml'"):
        read_chat_template("chat_ml")


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", " ", "\n", "</think>", "<think>a</think>b", " x ", "{{ x }}", "</s>", "\x1c", "a\n\nb"]
)
CALL = st.fixed_dictionaries(
    {
        "id": st.just("abcdefghi"),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.just("weather"), "arguments": st.dictionaries(st.sampled_from("ab"), TEXTS, max_size=2)}
        ),
    }
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS},
    optional={"tool_calls": st.lists(CALL, min_size=1, max_size=2), "reasoning_content": TEXTS},
)
SOURCES = {path.stem: path.read_text() for path in trl_templates()} | FAMOUS


@settings(max_examples=150, deadline=None)
@given(data=st.data(), messages=st.lists(MESSAGE, min_size=1, max_size=5), add=st.booleans(), tools=st.booleans())
def test_random_chats_render_the_same(data, messages, add, tools):
    name = data.draw(st.sampled_from(sorted(SOURCES)))
    thinking = data.draw(st.sampled_from([{}, {"enable_thinking": False}, {"enable_thinking": True}]))
    ours, theirs = both(SOURCES[name], messages, add, TOOLS if tools else None, **thinking)
    assert ours == theirs


def test_no_template_of_trl_needs_the_reference(caplog):
    for name, source in SOURCES.items():
        for messages in CHATS.values():
            with caplog.at_level(logging.WARNING, logger="pyprefopt"):
                both(source, messages, True, TOOLS)
            assert not caplog.records, name


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | wordcount }} {{ tools | length }}{{ value }}",
        "{{ 'a'.swapcase() }}",
        "a{{ messages['b', 'c'] }}",
    ],
)
def test_what_the_engine_does_not_have_is_rendered_by_the_reference(source, caplog):
    with caplog.at_level(logging.WARNING, logger="pyprefopt"):
        for _ in range(2):
            ours, theirs = both(source, CHATS["reasoning"], True, TOOLS, value=3)
            assert ours == theirs
            assert ours is not None
    assert len(caplog.records) == 1
    assert "rendered by transformers" in caplog.text
    with pytest.raises(ConfigError, match="no way"):
        apply_chat_template(CHATS["one turn"], source + "{{ raise_exception('no way') }}", tools=TOOLS)


def test_a_refusal_is_never_asked_twice(caplog):
    with pytest.raises(ConfigError, match="no way"):
        apply_chat_template(CHATS["one turn"], "{{ raise_exception('no way') }}")
    assert not caplog.records


def test_a_template_is_named_given_or_a_tokenizers(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ eos_token }}{{ messages[0].content }}")
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path), eos_token="</s>", chat_template=tmp_path / "t.jinja")
    for template in (tokenizer, tmp_path / "t.jinja", (tmp_path / "t.jinja").read_text()):
        tokens = None if template is tokenizer else {"eos_token": "</s>"}
        assert apply_chat_template(CHATS["one turn"], template, special_tokens=tokens) == "</s>What is 2 + 2?"
    with pytest.raises(ConfigError, match="special_tokens must be left out"):
        apply_chat_template(CHATS["one turn"], tokenizer, special_tokens={})
    with pytest.raises(ConfigError, match="messages must have a JSON form"):
        apply_chat_template([{"role": "user", "content": b"bytes"}], "plain")
    with pytest.raises(ConfigError, match="messages must have a JSON form"):
        apply_chat_template([{"role": "user", "content": "\ud800"}], "plain")
    documents = [{"title": "a", "text": "b"}]
    chat = [{"role": "user", "content": "Hi"}]
    assert apply_chat_template(chat, "{{ documents[0].title }}", documents=documents) == "a"
    with pytest.raises(ConfigError, match="messages must be a list of at least one"):
        apply_chat_template([], "plain")


def test_bombs_stop_in_bounded_time_and_memory():
    program = (
        "import json, resource, sys, time\n"
        "from pyprefopt.data.tokenization.render import apply_chat_template as render\n"
        "from pyprefopt.errors import ConfigError\n"
        "render([{'role': 'user', 'content': 'a'}], 'plain')\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)\n"
        "for bomb in json.load(sys.stdin):\n"
        "    start = time.process_time()\n"
        "    try:\n"
        "        print('rendered', bomb, len(render([{'role': 'user', 'content': 'a' * 1000}], bomb)))\n"
        "    except ConfigError as error:\n"
        "        print('refused', round(time.process_time() - start, 1), bomb[:60], str(error)[:80])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(BOMBS), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    assert all(line.startswith("refused") for line in lines), done.stdout
    assert all(float(line.split()[1]) < 20 for line in lines), done.stdout


def test_a_key_that_is_none_counts_as_absent():
    source = "{% for m in messages %}{{ m.role }}{{ '' if m.content is not defined else m.content }};{% endfor %}"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": None}]
    assert apply_chat_template(chat, source) == "usera;assistant;"


def test_a_template_that_is_none_is_a_config_error():
    with pytest.raises(ConfigError, match="chat_template must be"):
        apply_chat_template([{"role": "user", "content": "a"}], None)


def test_a_misspelt_name_is_no_template():
    chat = [{"role": "user", "content": "a"}]
    for name, near in (("chatmll", "; did you mean 'chatml'"), ("llamma3", "")):
        with pytest.raises(ConfigError, match=rf"chat_template must be .* one of plain, chatml, got '{name}'{near}"):
            apply_chat_template(chat, name)
    assert apply_chat_template(chat, "{{ messages[0].content }}") == "a"


@pytest.mark.parametrize("messages", ["hello", {"role": "user", "content": "x"}, 5, None])
def test_what_is_no_list_of_messages_is_reported(messages):
    with pytest.raises(
        ConfigError, match=r"^messages must be a list of .*; write \[\{'role': 'user', 'content': …\}\]$"
    ):
        apply_chat_template(messages, "chatml")
