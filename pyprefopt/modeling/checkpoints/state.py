"""What a training must remember, as a safetensors file: tensors, and the tree around them as JSON in its header.

Nothing in such a file can run when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyprefopt.errors import ArtifactError

_TREE = "tree"  # the metadata that holds the JSON
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_BROKEN = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def save_state(state: Any, path: str | Path) -> None:
    """Write mappings, lists, tuples, numbers, texts and tensors, of which one at a time is copied to the CPU.

    Tensors that are one in memory are one in the file.
    """
    tensors: dict[Any, tuple[str, Tensor]] = {}
    header: dict[str, Any] = {"__metadata__": {_TREE: json.dumps(_encoded(state, tensors))}}
    end = 0
    for name, tensor in tensors.values():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in tensors.values():
            file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def load_state(path: str | Path) -> Any:
    """Read what `save_state` wrote, onto the CPU; an ArtifactError for any other file."""
    return _read(path, lambda tensor: tensor.clone())  # a mapped file is not to be written to


def check_state(path: str | Path) -> None:
    """ArtifactError for a file that `load_state` would not read; no number of it is read."""
    _read(path, lambda tensor: tensor.shape)


def _read(path: str | Path, take: Callable[[Tensor], Any]) -> Any:
    try:
        with safe_open(path, "pt") as file:
            tree = json.loads(file.metadata()[_TREE])
            return _decoded(tree, lambda index: take(file.get_tensor(index)))
    except _BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{path} is not a training state as it was saved ({reason})") from None


def _encoded(value: Any, tensors: dict[Any, tuple[str, Tensor]]) -> Any:
    """The value as JSON; its tensors are put into `tensors`, with the names that stand in their places."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)  # those of enumerations and of NumPy too
    if isinstance(value, Mapping):
        return {"mapping": [[_encoded(part, tensors) for part in item] for item in value.items()]}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encoded(inner, tensors) for inner in value]}
    if not isinstance(value, Tensor):
        raise TypeError(f"a training state has no place for {type(value).__qualname__}")
    tensor = value.detach().as_subclass(Tensor)
    where = (tensor.untyped_storage().data_ptr(), tensor.storage_offset()) if tensor.numel() else len(tensors)
    key = (where, tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
    return {"tensor": tensors.setdefault(key, (str(len(tensors)), tensor))[0]}


def _decoded(value: Any, take: Callable[[str], Any]) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return take(content)
    if kind == "mapping":
        return {_decoded(name, take): _decoded(inner, take) for name, inner in content}
    return {"list": list, "tuple": tuple}[kind](_decoded(inner, take) for inner in content)
