"""Chat templates in Rust against transformers' own rendering, byte for byte."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from pyprefopt.data.template import SHIPPED, apply_chat_template, read_chat_template
from pyprefopt.errors import ConfigError

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


def trl_templates():
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else Path("absent")
    return sorted(folder.glob("*.jinja"))


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


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0] | tojson }}|{{ messages | tojson(indent=2) }}|{{ messages[0] | tojson(sort_keys=true) }}",
        "{{ value | tojson }} {{ value }} {{ [1, 2.5, true, none, 'a\\'b'] }} {{ {'k': 'v'} }}",
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% generation %}\n  a\n{% endgeneration %}\nb {%- generation -%} c {%- endgeneration %}",
        "{{ messages[0]['content'].strip().split('2')[-1].upper() }} {{ messages[0].content[1:-1] }}",
        "{{ strftime_now('%Y') }} {{ undefined_name }}|{{ messages[9] is defined }}",
        "{% macro f(x) -%} <{{ x }}> {%- endmacro %}{{ f('y') }}\n    {% if true %}\n  z\n    {% endif %}\n",
        "{{ raise_exception('no') }}",
    ],
)
def test_the_language_of_templates(source):
    value = {"big": 1e16, "small": 1e-7, "int": 3, "text": "ü\n\u2028</script>", "nested": [{}, [], None, False]}
    ours, theirs = both(source, CHATS["one turn"], False, value=value)
    assert ours == theirs


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=20), name=st.sampled_from(SHIPPED))
def test_any_text_renders_alike(text, name):
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
