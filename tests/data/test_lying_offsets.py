"""Arrow arrays whose offsets lie, given to the extension behind the back of those who look at them first."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pyprefopt import _rust
from pyprefopt.data.tokenization.tokenizer import load_tokenizer

# PyArrow looks at the first and at the last offset
LIES = {"beyond": [0, 9, 3], "descending": [0, 3, 1], "negative": [0, -1, 3], "far": [0, 1 << 30, 3]}
WIDTHS = {
    np.int32: (pa.list_, pa.string(), pa.binary()),
    np.int64: (pa.large_list, pa.large_string(), pa.large_binary()),
}


def lists(values, offsets, width):
    kind = WIDTHS[width][0](values.type)
    buffers = [None, pa.py_buffer(np.array(offsets, width))]
    return pa.Array.from_buffers(kind, len(offsets) - 1, buffers, children=[values])


def texts(offsets, width, kind=1):
    buffers = [None, pa.py_buffer(np.array(offsets, width)), pa.py_buffer(b"abc")]
    return pa.Array.from_buffers(WIDTHS[width][kind], len(offsets) - 1, buffers)


def views(buffer, start, length=20):
    view = np.array([length, 0, buffer, start], np.int32)
    return pa.Array.from_buffers(pa.string_view(), 1, [None, pa.py_buffer(view), pa.py_buffer(b"x" * 30)])


def chunk(array):
    return pa.chunked_array([array])


def refused(call):
    with pytest.raises(ValueError, match=r"is not sound Arrow data: its (offsets|views) must .*; write it again"):
        call()


def select(scores, **columns):
    sides = [(0.5, True)]
    return _rust.select_tokens(scores, method="top_k", sides=sides, rounding="ceil", minimum=0, **columns)


def frame(**columns):
    """A frame of preferences with a column of lies."""
    message = pa.array([{"role": "user", "content": "a"}] * 2)
    chats = pa.array([[message[0].as_py()]] * 2)
    return pa.table(
        {"row": pa.array([0, 1], pa.uint64()), "prompt": chats, "chosen": chats, "rejected": chats} | columns
    )


@pytest.fixture(scope="module")
def native():
    return load_tokenizer("embedded:toy").native


@pytest.mark.parametrize("width", WIDTHS, ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("lie", LIES)
def test_lists(native, lie, width):
    offsets = LIES[lie]
    scores = pa.array([1.0, 2.0, 3.0], pa.float32())
    good = pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float32()))
    refused(lambda: select(lists(scores, offsets, width)))
    refused(lambda: select(good, mask=lists(pa.array([True] * 3), offsets, width)))
    refused(lambda: select(good, ids=lists(pa.array([1, 2, 3], pa.uint32()), offsets, width)))
    messages = pa.array([{"role": "user", "content": "a"}] * 3)
    refused(lambda: native.tokenize(frame(prompt=lists(messages, offsets, width))))
    refused(lambda: _rust.truncate_text(chunk(lists(messages, offsets, width)), unit="words", length=1))
    spans = lists(pa.array([{"start": 0, "end": 1}] * 3), offsets, width)
    starts = pa.array([[0], [0]], pa.list_(pa.uint32()))
    columns = pa.StructArray.from_arrays([spans, starts, starts], ["spans", "starts", "ends"])
    refused(lambda: _rust.spans_to_mask(chunk(columns)))
    segments = pa.StructArray.from_arrays([lists(pa.array([True] * 3), offsets, width)], ["mask"])
    refused(lambda: _rust.truncate_positions(chunk(segments), length=1))
    refused(lambda: _rust.count_content(chunk(segments)))


@pytest.mark.parametrize("width", WIDTHS, ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("lie", LIES)
def test_texts(native, lie, width):
    lying = texts(LIES[lie], width)
    refused(lambda: native.encode(chunk(lying)))
    refused(lambda: _rust.truncate_text(chunk(lying), unit="words", length=1))
    refused(lambda: _rust.count_units(chunk(lying), unit="words"))
    refused(lambda: native.tokenize(frame(tools=lying)))
    for kind in (1, 2):
        rows = chunk(texts(LIES[lie], width, kind))
        refused(lambda rows=rows: _rust.parse_rows(rows, "preference"))
        refused(lambda rows=rows: _rust.detect_format(rows, ["preference"]))


@pytest.mark.parametrize(("buffer", "start"), [(1, 0), (-1, 0), (0, 11), (0, -1)])
def test_views(native, buffer, start):
    refused(lambda: native.encode(chunk(views(buffer, start))))
    refused(lambda: _rust.parse_rows(chunk(views(buffer, start)), "preference"))


def test_sound_arrays_are_read(native):
    for width in WIDTHS:
        assert native.encode(chunk(texts([0, 1, 3], width))) is not None
        assert select(lists(pa.array([1.0, 2.0, 3.0], pa.float32()), [0, 1, 3], width)) is not None
        assert select(lists(pa.array([1.0, 2.0, 3.0], pa.float32()), [0, 1, 3], width).slice(1)) is not None
    assert native.encode(chunk(views(0, 10))) is not None
