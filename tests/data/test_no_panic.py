"""Odd Arrow columns at every function of the extension: an error in words, or a result; never a Rust panic.

`PanicException` derives from BaseException, so whatever the calls below raise beside the allowed errors fails the test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyprefopt._rust as rust
from pyprefopt.data.reading.catalog import TABLE

ALLOWED = (TypeError, ValueError)
ROUNDINGS, UNITS = ("ceil", "floor", "half_up", "odd"), ("tokens", "characters", "words", "sentences", "odd")
TOKENIZER = rust.Tokenizer(
    (Path(__file__).parents[2] / "rust/fuzz/tiny-tokenizer.json").read_bytes(),
    special_tokens=[("eos_token", "<|endoftext|>")],
    chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}",
)

ODD_TEXTS = [
    "",
    "a",
    "\0",
    "é\u0301",
    "\U0001f469\u200d\U0001f680",
    "\u202e\u05e9\u05dc",
    " \n\n ",
    "w" * 3000,
    '{"prompt": "a"',
]
ROWS = [
    json.dumps(row)
    for row in (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [{"role": "user", "content": "\ud800"}], "chosen": [[]], "rejected": None},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
        {"prompt": "a", "responses": ["b", ["c"]], "scores": [1, 1e400, None]},
        {"instruction": "a", "input": 1, "output": {}},
        [1, 2], None,
    )
]  # fmt: skip
texts = st.sampled_from(ODD_TEXTS + ROWS) | st.text(max_size=8)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", ""]), "content": texts})
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])

# Types with elements that fit them; `None` is mixed in below.
TYPED = [
    (pa.null(), st.none()),
    (pa.string(), texts), (pa.large_string(), texts), (pa.string_view(), texts),
    (pa.binary(), st.binary(max_size=9)), (pa.large_binary(), st.sampled_from([row.encode() for row in ROWS])),
    (pa.binary_view(), st.binary(max_size=9)), (pa.binary(2), st.binary(min_size=2, max_size=2)),
    (pa.bool_(), st.booleans()), (pa.uint8(), st.integers(0, 255)), (pa.uint32(), st.integers(0, 2**32 - 1)),
    (pa.int64(), st.integers(-5, 5)), (pa.float16(), st.floats(width=16).map(np.float16)),
    (pa.float32(), st.floats(width=32)), (pa.float64(), st.floats()),
    (pa.list_(pa.uint32()), st.lists(st.integers(0, 300), max_size=4)),
    (pa.large_list(pa.uint32()), st.lists(st.integers(0, 300) | st.none(), max_size=4)),
    (pa.list_(pa.uint32(), 2), st.lists(st.integers(0, 300), min_size=2, max_size=2)),
    (pa.list_view(pa.float32()), st.lists(st.floats(width=32), max_size=4)),
    (pa.large_list(pa.float32()), st.lists(st.floats(width=32) | st.none(), max_size=4)),
    (pa.large_list(pa.bool_()), st.lists(st.booleans() | st.none(), max_size=4)),
    (pa.list_(pa.bool_()), st.lists(st.booleans(), max_size=4)),
    (pa.large_list(pa.uint16()), st.lists(st.integers(0, 9), max_size=4)),
    (pa.list_(pa.list_(pa.uint32())), st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2)),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["chosen", "prompt", "a"])),
    (MESSAGE, message), (pa.list_(MESSAGE), st.lists(message, max_size=3)),
    (pa.large_list(pa.list_(MESSAGE)), st.lists(st.lists(message, max_size=2), max_size=2)),
    (pa.struct([]), st.just({})), (pa.map_(pa.string(), pa.int8()), st.just([("a", 1)])),
    (pa.timestamp("us"), st.integers(0, 9)), (pa.decimal128(5, 2), st.just(1)),
]  # fmt: skip


class Extension(pa.ExtensionType):
    """A type that only its maker knows, around another one."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "pyprefopt.test")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


@st.composite
def columns(draw: Any, length: int | None = None) -> Any:
    """Arrays of one type: sliced, in chunks (also none), dictionary-encoded, of an extension type, or of nulls."""
    kind, elements = draw(st.sampled_from(TYPED))
    size = draw(st.integers(0, 5)) if length is None else length
    padding = draw(st.integers(0, 3))
    values = draw(st.lists(elements | st.none(), min_size=size + padding, max_size=size + padding))
    array = pa.array(values, kind)[padding:]
    shape = draw(st.sampled_from(["array", "chunks", "empty chunks", "dictionary", "extension"]))
    if shape == "dictionary" and pa.types.is_string(kind):
        return array.dictionary_encode()
    if shape == "extension":
        return pa.ExtensionArray.from_storage(Extension(kind), array)
    if shape == "chunks":
        at = draw(st.integers(0, size))
        return pa.chunked_array([array[:at], array[at:]])
    return pa.chunked_array([array[:0], array, array[:0]]) if shape == "empty chunks" else array


NAMES = (
    "row", "segment", "kind", "ids", "mask", "starts", "ends", "turns", "score", "scores", "prompt", "chosen",
    "rejected", "response", "responses", "chosen_complete", "rejected_complete",
    "tools", "template_kwargs", "spans", "cut",
)  # fmt: skip


@st.composite
def frames(draw: Any) -> Any:
    """Tables of odd columns under the names that the kernels read, as a table or a column of structs."""
    size = draw(st.integers(0, 4))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=8) | st.just(NAMES))
    table = pa.table({name: draw(columns(size)) for name in names})
    return table if draw(st.booleans()) else draw(columns())


numbers = st.sampled_from([0.0, 0.3, 1.0, -1.0, 2.0, float("nan"), float("inf")])
lengths = st.none() | st.sampled_from([0, 1, 3, 2**63])


def arrays(dtype: Any, size: int = 6) -> Any:
    return st.lists(st.integers(0, 5), max_size=size).map(lambda values: np.array(values, dtype))


def call(name: str, draw: Any) -> Any:  # noqa: PLR0911, PLR0912
    """Call one function of the extension with odd columns and settings of the right types."""
    column = lambda: draw(columns() | frames())  # noqa: E731
    maybe = lambda: draw(st.none() | columns())  # noqa: E731
    pick = lambda values: draw(st.sampled_from(values))  # noqa: E731
    ratio, length, rounding = draw(st.none() | numbers), draw(lengths), pick(ROUNDINGS)
    function = getattr(rust, name)
    if name == "parse_rows":
        line = draw(st.none() | st.just(1))
        return function(column(), pick(FORMATS), first_line=line, carry=draw(st.booleans()))
    if name == "detect_format":
        return function(column(), draw(st.lists(st.sampled_from(FORMATS), max_size=3)))
    if name == "quoted_names":
        return function(column(), draw(st.lists(st.sampled_from(["", "a", '"']), max_size=2)))
    if name == "truncate_text":
        tokenizer = pick([None, TOKENIZER])
        base = draw(st.none() | arrays(np.int64))
        return function(
            column(), unit=pick(UNITS), ratio=ratio, length=length, rounding=rounding, tokenizer=tokenizer, base=base
        )
    if name == "count_units":
        return function(column(), unit=pick(UNITS), tokenizer=pick([None, TOKENIZER]))
    if name == "truncate_positions":
        return function(
            column(), ratio=ratio, length=length, rounding=rounding, base=draw(st.none() | arrays(np.int64))
        )
    if name == "kept_units":
        return function(draw(arrays(np.int64)) - 2, ratio=ratio, length=length, rounding=rounding)
    if name == "select_tokens":
        sides = draw(st.lists(st.tuples(numbers, st.booleans()), max_size=2))
        return function(
            maybe(), method=pick(("top_k", "threshold", "random", "odd")), sides=sides, rounding=rounding,
            minimum=pick((0, 1, 9)), mask=maybe(), ids=maybe(), excluded=[1, 2],
            lengths=draw(st.none() | arrays(np.int64)), side=draw(st.none() | arrays(np.uint8)),
            rows=draw(st.none() | arrays(np.uint64)), segments=draw(st.none() | arrays(np.uint64)),
        )  # fmt: skip
    if name == "pack_lengths":
        return function(draw(arrays(np.int64)) - 1, max_tokens=pick((0, 4, 2**63)), max_groups=draw(lengths))
    if name == "Packer":
        return pack(draw, column, maybe)
    if name == "TextBlocks":
        limits = {key: pick((0, 1, 20)) for key in ("block_bytes", "block_rows", "row_bytes")}
        blocks = function(pick(("lines", "array", "csv", "odd")), delimiter=pick((0, 10, 34, 44)), **limits)
        text = draw(
            st.lists(st.sampled_from([*ROWS, "[", "]", ",", "\n", '"', "\ufeff"]) | st.text(max_size=4), max_size=6)
        )
        return [blocks.push(draw(st.just(part.encode("utf-8", "surrogatepass")))) for part in text], blocks.finish()
    if name == "FileCutter":
        return cut_file(draw, column, function)
    if name == "Tokenizer":
        limits = {"max_prompt_tokens": draw(lengths), "max_tokens": draw(lengths)}
        limits |= {
            "prompt_overflow": pick(("error", "drop", "keep_start", "keep_end", "odd")),
            "boundary": pick(("split", "error", "odd")),
        }
        return pick((TOKENIZER.encode, TOKENIZER.prove, lambda frame: TOKENIZER.tokenize(frame, **limits)))(column())
    return function(column())


def cut_file(draw: Any, column: Any, function: Any) -> Any:
    pick = lambda values: draw(st.sampled_from(values))  # noqa: E731
    layouts = ("lines", "array", "csv", "odd")
    cutter = function(
        pick(layouts), pick(layouts), delimiter=pick((0, 10, 34, 44)), row_bytes=pick((0, 20, 1 << 20)),
        format=pick((None, *FORMATS)), columns=draw(st.none() | st.lists(st.sampled_from(NAMES), max_size=2)),
        unit=pick(UNITS), ratio=draw(st.none() | numbers), length=draw(lengths), rounding=pick(ROUNDINGS),
        tokenizer=pick([None, TOKENIZER]), of_shortest=draw(st.booleans()), ended=draw(st.booleans()),
    )  # fmt: skip
    text = draw(st.lists(st.sampled_from([*ROWS, "[", "]", ",", "\n", '"']) | st.text(max_size=4), max_size=6))
    written = [cutter.push(part.encode("utf-8", "surrogatepass")) for part in text]
    return written, cutter.finish(), cutter.rows, cutter.same, cutter.missing, cutter.cut_rows(column())


def pack(draw: Any, column: Any, maybe: Any) -> Any:
    groups = draw(arrays(np.int64, 3))
    packer = rust.Packer(
        column(), column(), draw(arrays(np.uint8)), draw(arrays(np.float32)), draw(arrays(np.uint64)), groups,
        layout=draw(st.sampled_from(["shared", "separate", "odd"])), chosen_ratio=0.3, rejected_ratio=float("nan"),
        only=draw(st.sampled_from([None, 1, 200])), selected=maybe(), token_rewards=maybe(), user_weights=maybe(),
        ref_logps=maybe(),
    )  # fmt: skip
    return packer.lengths(groups), packer.plan(groups, max_tokens=9, max_groups=None), packer.assemble([groups])


FORMATS = (*TABLE, "odd")
WITHOUT_COLUMNS = {"__version__", "render_chat", "format_table"}
FUNCTIONS = sorted(set(rust.__all__) - WITHOUT_COLUMNS)


def test_rows_of_a_column_have_no_lines() -> None:
    with pytest.raises(ValueError, match="first_line goes with bytes"):
        rust.parse_rows(pa.chunked_array([["{"]]), "preference", first_line=1)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_odd_columns_are_refused_in_words(name: str, data: Any) -> None:
    try:
        call(name, data.draw)
    except ALLOWED:  # in words: messages are tested where each function is
        return


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_odd_chats_are_refused_in_words(data: Any) -> None:
    template = data.draw(st.sampled_from(TEMPLATES) | st.text("{}%|()[]'\" amrolesfi=.+-0", max_size=30))
    messages = data.draw(st.sampled_from(["", "[]", "[1]", "{}", "[{}]", '[{"role": 1, "content": null}]', "[" * 2000]))
    extra = data.draw(st.sampled_from([None, "", "{}", "[]", '{"a": 1e999}', "{" * 2000]))
    try:
        rust.render_chat(
            template, messages, special_tokens=[("eos_token", "")], add_generation_prompt=data.draw(st.booleans()),
            tools=extra, template_kwargs=extra,
        )  # fmt: skip
    except ALLOWED:  # in words: messages are tested where each function is
        return


TEMPLATES = [
    "{{ messages[0].content[5:2] }}", "{{ 1 // 0 }}", "{{ 9223372036854775807 + 1 }}", "{{ 'a' * 10000000000 }}",
    "{% for i in range(1000000000) %}{{ i }}{% endfor %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages | tojson(indent=99999999999) }}", "{{ 'é'[1:] ~ 'é'.center(3) }}", "{{ strftime_now('%Q%') }}",
    "{{ messages[99999999999999999999] }}", "{{ (-9223372036854775807 - 1) // -1 }}", "{{ 2 ** 99999 }}", "{{ 5 % 0 }}",
    "{{ '%s' % 1 }}", "{{ ''.join(messages) }}", "{{ raise_exception(messages) }}", "{{ messages|batch(0) }}",
    "{{ messages|slice(0) }}", "{{ range(1, 10, 0) }}", "{{ 'abc'|truncate(-1) }}", "{{ 'a'|indent(9999999999) }}",
]  # fmt: skip
