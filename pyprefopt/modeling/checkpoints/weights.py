"""Files of weights as they lie on disk: whether they are whole, by their headers; and which numbers are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.quantized import QuantizedLinear

if TYPE_CHECKING:
    from torch import nn

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # transformers looks for these, in this order
_LFS = b"version https://git-lfs"
_REMEDY = "copy or download the model again"


def check_weights(directory: Path) -> None:
    """Check that the safetensors files that transformers would load are there and whole, by their headers.

    Raises:
        ConfigError: a file is missing, damaged or cut short.
    """
    if not any(directory.glob("*.safetensors")) and not (directory / INDEX).is_file():
        raise ConfigError(
            f"model must have its weights as *.safetensors (nothing else is opened), got {str(directory)!r}; "
            "convert it, or give its config.json for random weights"
        )
    if (directory / WHOLE).is_file():
        return _check_file(directory / WHOLE)
    if not (directory / INDEX).is_file():
        found = sorted(path.name for path in directory.glob("*.safetensors"))
        raise ConfigError(
            f"model must have its weights as {WHOLE}, or as parts with {INDEX}, got {str(directory)!r} with "
            f"{', '.join(found[:3])}; {_REMEDY}"
        )
    for name in _parts(directory / INDEX):
        if not (directory / name).is_file():
            raise ConfigError(
                f"model must have all parts of its weights, but {name}, which {INDEX} names, is not in "
                f"{str(directory)!r}; {_REMEDY}"
            )
        _check_file(directory / name)
    return None


def _parts(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"model: {str(index)!r} must say which file has which weight (weight_map), got {type(error).__name__}: "
            f"{error}; {_REMEDY}"
        ) from error


def _check_file(file: Path) -> None:
    try:
        with safe_open(file, "np"):
            return
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model must have whole weights, but {str(file)!r} {_what_is_wrong(file, error)}") from error


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
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"({size:,} bytes) does not begin as a safetensors file does ({error}); {_REMEDY}"
    if size < wanted:
        return f"is cut short: {size:,} of {wanted:,} bytes; {_REMEDY}"
    return f"is damaged ({error}); {_REMEDY}"


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
