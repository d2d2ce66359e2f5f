"""Files of weights as they lie on disk: whether they are whole, by their headers; and which numbers are none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.configuration import read_json, unreadable
from pyprefopt.modeling.checkpoints.quantized import QuantizedLinear

if TYPE_CHECKING:
    from torch import nn

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # transformers looks for these, in this order
_LFS = b"version https://git-lfs"
_REMEDY = "copy or download the model again"


class Stored(NamedTuple):
    """A tensor as its file's header has it."""

    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, I64
    size: int  # numbers


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """What is in the safetensors files that transformers would load, by their headers; all are there and whole.

    Raises:
        ConfigError: a file is missing, damaged or cut short.
    """
    if not any(directory.glob("*.safetensors")) and not (directory / INDEX).is_file():
        raise ConfigError(
            f"model must have its weights as *.safetensors (nothing else is opened), got {str(directory)!r}; "
            "convert it, or give its config.json for random weights"
        )
    if (directory / WHOLE).is_file():
        return _read_header(directory / WHOLE)
    if not (directory / INDEX).is_file():
        found = sorted(path.name for path in directory.glob("*.safetensors"))
        raise ConfigError(
            f"model must have its weights as {WHOLE}, or as parts with {INDEX}, got {str(directory)!r} with "
            f"{', '.join(found[:3])}; {_REMEDY}"
        )
    tensors: dict[str, Stored] = {}
    for name in _parts(directory / INDEX):
        if not (directory / name).is_file():
            raise ConfigError(
                f"model must have all parts of its weights, but {name}, which {INDEX} names, is not in "
                f"{str(directory)!r}; {_REMEDY}"
            )
        tensors |= _read_header(directory / name)
    return tensors


def check_numbers(tensors: dict[str, Stored], names: Iterable[str]) -> None:
    """ConfigError where weights of these names are stored as whole numbers, which no model is trained with."""
    for name in names:
        stored = tensors.get(name)
        if stored is not None and (stored.dtype == "BOOL" or stored.dtype[0] in "IU"):
            raise ConfigError(
                f"model must have weights of floating point numbers, but {str(stored.file)!r} stores {name} as "
                f"{stored.dtype}; give the model's own checkpoint, which is not quantized"
            )


def _parts(index: Path) -> list[str]:
    """The files of an index, which lie beside it."""
    rule = "say which file has which weight (weight_map)"
    named = read_json(index, rule, _REMEDY).get("weight_map")
    files = list(named.values()) if isinstance(named, dict) else []
    if not files or not all(isinstance(name, str) for name in files):
        raise ConfigError(f"model: {str(index)!r} must {rule}, got {repr(named)[:80]}; {_REMEDY}")
    for weight, name in named.items():  # type: ignore[union-attr]
        if name in (".", "..") or name != Path(name).name or "\0" in name:
            raise ConfigError(
                f"model: {str(index)!r} must name files beside it, got {repr(name)[:80]} for {weight}; {_REMEDY}"
            )
    return sorted(set(files))


def _read_header(file: Path) -> dict[str, Stored]:
    try:
        with file.open("rb"):
            pass
        with safe_open(file, "np") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {name: Stored(file, part.get_dtype(), math.prod(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ConfigError(f"model must have whole weights, but {str(file)!r} {_what_is_wrong(file, error)}") from error
    except OSError as error:
        raise unreadable(file, error) from error


def _what_is_wrong(file: Path, error: Exception) -> str:
    """What is wrong with a file that safetensors does not open, and what to do."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(8)
        if _LFS.startswith(start) and len(start) == 8:
            return "is a pointer of Git LFS, not the weights; run git lfs pull in that folder"
        length = int.from_bytes(start, "little")
        try:
            header: Any = json.loads(handle.read(length)) if len(start) == 8 and length <= size else None
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            wanted = 8 + length + max(ends, default=0)
            short = bool(size < wanted)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return f"({size:,} bytes) does not begin as a safetensors file does ({_first_line(error)}); {_REMEDY}"
    if short:
        return f"is cut short: {size:,} of {wanted:,} bytes; {_REMEDY}"
    return f"is damaged ({_first_line(error)}); {_REMEDY}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def not_finite(model: nn.Module) -> str | None:
    """The first tensor of weights that holds NaN or infinity, in words; None where there is none. Reads all of them."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            packed = isinstance(module, QuantizedLinear) and parameter is module.weight
            weight = module.dense() if packed else parameter
            bad = int((~torch.isfinite(weight)).sum())
            if bad:
                kind = "NaN" if bool(torch.isnan(weight).any()) else "infinity"
                return f"{kind}, in {name} ({bad:,} of {weight.numel():,} numbers)"
    return None
