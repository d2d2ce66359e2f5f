"""The engine on this device against itself in float64: log-probs and gradients, each way of attention, both layouts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_file import LAYOUTS, BatchFile
from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model
from pyprefopt.modeling.attention.backends import CHOICES
from pyprefopt.modeling.head.choice import Kernel
from pyprefopt.types import PackedBatch

Row = dict[str, Any]
# Largest mean difference of a log-prob (nats), and of the gradient relative to its norm. In bfloat16 a way may be twice
# as far off as the loop, whose own distance is the precision's.
BOUNDS = {"float32": (1e-4, 1e-4), "bfloat16": (0.1, 0.3)}
WORSE, FLOOR = 2.0, 1e-3


def configurations(vocabulary: int, quick: bool) -> dict[str, dict[str, Any]]:
    """Small models that ask for grouped heads, windows, soft caps, and other norms; heads of 64, 16 where quick."""
    size = 16 if quick else 64
    base: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 4 * size, "intermediate_size": 8 * size, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 4096,
    }  # fmt: skip
    grouped, window = {**base, "num_key_value_heads": 2}, 24 if quick else 200
    gemma = {"head_dim": size, "query_pre_attn_scalar": size, "attn_logit_softcapping": 5.0, "sliding_window": window}
    return {
        "llama": {**grouped, "model_type": "llama"},
        "mistral": {**grouped, "model_type": "mistral", "sliding_window": window},
        "gemma2": {**grouped, **gemma, "model_type": "gemma2", "final_logit_softcapping": 10.0},
        "gpt_neox": {**base, "model_type": "gpt_neox"},
    }


def check(file: BatchFile, device: torch.device, *, quick: bool) -> Iterator[Row]:
    """A row for each model, precision, layout and way."""
    batches = {layout: file.batches["check", layout][0].to(device) for layout in LAYOUTS}
    for name, config in configurations(rounded(file.vocabulary), quick).items():
        for dtype in BOUNDS:
            yield from _check_model(name, config, dtype, batches, device)


def head_kernels(device: torch.device) -> tuple[Kernel, ...]:
    """What can read the head's output on this device."""
    return ("torch", "triton") if device.type == "cuda" else ("torch",)


def rounded(vocabulary: int) -> int:
    """A multiple of 64, as GPUs like it."""
    return 64 * -(-vocabulary // 64)


def why(error: ConfigError, way: str) -> str:
    """Of a refused way: the reason alone."""
    return str(error).partition(f"got '{way}': ")[2].partition("; set attention")[0] or str(error)


def first_line(error: Exception) -> str:
    """For a table."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def _check_model(
    name: str, config: dict[str, Any], dtype: str, batches: dict[str, PackedBatch], device: torch.device
) -> Iterator[Row]:
    weights = {key: x.to(getattr(torch, dtype)) for key, x in _weights(config).items()}
    exact, expected = _outcome(_model(config, "float64", "loop", weights, device), batches["separate"])
    own: dict[str, tuple[float, float]] = {}  # the loop's distance, by layout
    ways = [("loop", kernel) for kernel in head_kernels(device)]
    for way, kernel in (*ways, *((one, "torch") for one in CHOICES if one not in ("auto", "loop"))):
        for layout, batch in batches.items():
            row: Row = {"model": name, "dtype": dtype, "layout": layout, "attention": way, "kernel": kernel}
            try:
                model = _model(config, dtype, way, weights, device)
                model.kernel = kernel
                logps, gradient = _outcome(model, batch)
            except ConfigError as error:
                told = why(error, way)
                yield row | {"verdict": "failed" if "trial" in told else "refused", "reason": told}
                continue
            except Exception as error:  # of a kernel: the other ways are still worth a row
                yield row | {"verdict": "failed", "reason": first_line(error)}
                continue
            difference = (logps - exact).abs()
            found = difference.mean().item(), _distance(gradient, expected)
            own.setdefault(layout, found)
            limits = BOUNDS[dtype]
            if (way, kernel) != ("loop", "torch") and dtype == "bfloat16":
                limits = tuple(
                    min(limit, WORSE * mine + FLOOR) for limit, mine in zip(limits, own[layout], strict=True)
                )
            good = all(value <= limit for value, limit in zip(found, limits, strict=True))  # false where NaN
            yield row | {
                "logps_mean": found[0], "logps_max": difference.max().item(), "gradient": found[1],
                "verdict": "ok" if good else "failed",
            }  # fmt: skip


def _weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Far from their initial values, norms and biases too, so that no mistake hides behind a flat attention."""
    state = _load(config, "float32", "loop").state_dict()
    generator = torch.Generator().manual_seed(1)
    scale = config["hidden_size"] ** -0.5
    return {key: x + scale * torch.randn(x.shape, generator=generator) for key, x in state.items()}


def _load(config: dict[str, Any], dtype: str, way: str) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        return load_model(path, dtype=dtype, attention=way)


def _model(
    config: dict[str, Any], dtype: str, way: str, weights: dict[str, Tensor], device: torch.device
) -> LogpsModel:
    model = _load(config, dtype, way)
    model.load_state_dict({key: x.to(getattr(torch, dtype)) for key, x in weights.items()})
    return LogpsModel(model.to(device))


def _outcome(model: LogpsModel, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs, and the gradients of a weighted sum of them."""
    logps = model(batch)
    (logps * torch.linspace(-1, 1, len(logps), device=logps.device, dtype=logps.dtype)).sum().backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return logps.detach().double(), gradients


def _distance(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to their norm."""
    if ours.keys() != exact.keys():
        return float("nan")
    apart = torch.stack([(ours[name] - exact[name]).norm() for name in exact]).norm()
    return float(apart / torch.stack([x.norm() for x in exact.values()]).norm())
