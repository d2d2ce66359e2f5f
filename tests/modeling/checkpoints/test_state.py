"""Training state as safetensors: every bit comes back, and what is no such file is refused and never run."""

from __future__ import annotations

import json
import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pyprefopt.errors import ArtifactError
from pyprefopt.modeling.checkpoints.state import check_state, load_state, save_state
from tests.evil import write_evil

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
names = st.text(max_size=5) | st.integers()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3)
    ),
)


@given(tree=trees)
def test_a_tree_comes_back(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree.pt"
    save_state(tree, path)
    assert repr(load_state(path)) == repr(tree)  # True is not 1, and 1 not 1.0


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_tensors_come_back_bit_by_bit(tmp_path, dtype, shape):
    tensor = torch.randint(0, 2, shape).to(dtype)
    save_state({"a": [tensor], 7: tensor.T if tensor.ndim == 2 else tensor}, tmp_path / "s.pt")
    found = load_state(tmp_path / "s.pt")
    assert found["a"][0].dtype == dtype
    assert torch.equal(found["a"][0], tensor)
    assert found["a"][0].shape == tensor.shape
    assert torch.equal(found[7], tensor.T if tensor.ndim == 2 else tensor)


def test_nan_and_infinity_keep_their_bits(tmp_path):
    tensor = torch.tensor([torch.nan, -torch.inf, -0.0, 1e-45])
    save_state({"t": tensor, "f": float("inf")}, tmp_path / "s.pt")
    found = load_state(tmp_path / "s.pt")
    assert torch.equal(found["t"].view(torch.int32), tensor.view(torch.int32))
    assert found["f"] == float("inf")


def test_one_tensor_under_two_names_is_written_once(tmp_path):
    weight, flat = torch.ones(100), torch.arange(6.0)
    save_state(OrderedDict(a=weight, b=weight.detach(), c=flat[:3], d=flat[3:]), tmp_path / "s.pt")
    assert len(load_file(tmp_path / "s.pt")) == 3
    found = load_state(tmp_path / "s.pt")
    assert found["d"].tolist() == [3, 4, 5]
    found["c"].add_(1)  # what is loaded is no part of the file
    assert load_state(tmp_path / "s.pt")["c"].tolist() == [0, 1, 2]


def test_an_object_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="no place for object"):
        save_state({"a": object()}, tmp_path / "s.pt")
    assert not (tmp_path / "s.pt").exists()


@pytest.mark.parametrize("read", [load_state, check_state])
@pytest.mark.parametrize("kind", ["torch", "zip", "bare"])
def test_a_pickle_is_named_and_not_run(tmp_path, kind, read):
    path, mark = tmp_path / "mp_rank_00_model_states.pt", tmp_path / "mark"
    write_evil(path, mark, kind)
    with pytest.raises(ArtifactError, match=r"mp_rank_00_model_states\.pt is not a training state as it was saved"):
        read(path)
    assert not mark.exists()
    if kind == "bare":
        pickle.loads(path.read_bytes())  # noqa: S301  (it would have)
        assert mark.exists()


def with_tree(path, tree):
    save_file({"0": torch.ones(2)}, path, metadata={"tree": tree})


@pytest.mark.parametrize(
    "tree",
    ["", "{", "[1]", '{"tensor": "1"}', '{"tensor": 0}', '{"tensor": "0", "list": []}', '{"class": ["os", "system"]}',
     '{"mapping": 3}', '{"mapping": [[1]]}', '{"mapping": [[{"list": []}, 1]]}', '{"list": 5}', "{}", "[" * 100_000,
     '{"list":[' * 100_000],
)  # fmt: skip
def test_a_tree_that_lies_is_named(tmp_path, tree):
    with_tree(tmp_path / "s.pt", tree)
    for read in (load_state, check_state):
        with pytest.raises(ArtifactError, match=r"s\.pt is not a training state"):
            read(tmp_path / "s.pt")


def test_other_files_are_named(tmp_path):
    path = tmp_path / "s.pt"
    save_file({"0": torch.ones(2)}, path)
    header = json.dumps({"0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 99]}}).encode()
    for content in (path.read_bytes(), b"", b"\x00" * 7, b"\xff" * 64, struct.pack("<Q", len(header)) + header):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="is not a training state"):
            check_state(path)
    for missing in (tmp_path / "no.pt", tmp_path):
        with pytest.raises(ArtifactError, match="is not a training state"):
            load_state(missing)
