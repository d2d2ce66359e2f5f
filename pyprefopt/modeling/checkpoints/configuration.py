"""A model's config.json: read, and refused where it says what no model can be."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from transformers import CONFIG_MAPPING, AutoConfig

from pyprefopt.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

_LARGEST_FILE, _DEEPEST, _MOST_ENTRIES = 64 * 2**20, 64, 2_000_000  # bytes, brackets, values
_REMEDY = "correct it there, or copy or download the model again"
_CORE = frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "n_embd", "n_layer", "n_layers", "n_head", "n_heads", "n_positions",
    "n_inner", "d_model", "ffn_dim", "num_layers", "num_heads", "max_seq_len", "num_experts_per_tok",
})  # fmt: skip
# Names of settings -> the most that they may say: of what is built one by one, and of what only has a size.
_MOST = (
    (re.compile(r"layers?$"), 4_096),
    (re.compile(r"(heads?|experts|labels)$"), 65_536),
    (
        re.compile(
            r"size|dim|embd|d_model|inner|intermediate|ffn|vocab|rank|width|position|ctx|seq|window|chunk|"
            r"(?<!model_max_)length|state|kernel|group|block"
        ),
        2**31 - 1,
    ),
)
_MOST_MODULES = 2**19  # layers times experts
_POSITIVE = frozenset({"rope_theta", "rope_local_base_freq", "rotary_emb_base", "factor", "partial_rotary_factor"})


def read_config(path: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Read the configuration of a model, of a type that can be built.

    Args:
        path: the file, or a folder with a config.json.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ConfigError: it cannot be read, or a value in it is none that a model can have.
    """
    file = path if path.is_file() else path / "config.json"
    settings = read_json(file)
    _check_kind(settings, file, trust_remote_code)
    _check_values(settings, file)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
        text = config.get_text_config()
    except Exception as error:  # transformers raises whatever a value leads to
        refuse_config(file, settings, error)
    _check_heads(text, file)
    return cast("PreTrainedConfig", config)


def read_json(file: Path, rule: str = "be JSON", remedy: str = _REMEDY) -> dict[str, Any]:
    """The JSON object in a model's file; `rule` and `remedy` are for errors.

    Raises:
        ConfigError: it cannot be read, is something else, or is nested or large beyond reason.
    """
    try:
        if (size := file.stat().st_size) > _LARGEST_FILE:
            raise ConfigError(f"model: {str(file)!r} must be at most {_LARGEST_FILE:,} bytes, got {size:,}; {remedy}")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"model: {str(file)!r} must {rule}, in UTF-8, got an error: {error}; {remedy}") from error
    try:
        settings = json.loads(text)
    except RecursionError:
        raise ConfigError(f"model: {str(file)!r} must {rule}, in at most {_DEEPEST} levels; {remedy}") from None
    except ValueError as error:
        raise ConfigError(f"model: {str(file)!r} must {rule}, got an error: {error}; {remedy}") from error
    if not isinstance(settings, dict):
        shown = repr(settings)[:40]
        raise ConfigError(f"model: {str(file)!r} must {rule}, as an object of settings, got {shown}; {remedy}")
    return settings


def unreadable(path: Path, error: OSError) -> ConfigError:
    """The error of a file or folder that the system does not let read."""
    return ConfigError(
        f"model must be files that can be read, but {str(path)!r} cannot ({error.strerror or type(error).__name__}); "
        "change its permissions, or give another path"
    )


def refuse_config(file: Path, settings: dict[str, Any], error: Exception) -> NoReturn:
    """Raise the ConfigError for what transformers made of a configuration, with the setting that it speaks of."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = ": ".join([type(error).__name__, *lines[:3]])[:300]
    if isinstance(error, ImportError):
        raise ConfigError(f"model: {str(file)!r} needs a package that is not installed ({said})") from error
    said_of = " ".join(lines).replace("Padding_idx", "pad_token_id")  # torch's name of it
    if (found := _blamed(settings, said_of)) is not None:
        name, value = found
        raise ConfigError(
            f"model: {name} must be a value that transformers takes, got {_shown(value)} ({str(file)!r}: {said}); "
            f"{_REMEDY}"
        ) from error
    raise ConfigError(
        f"model: {str(file)!r} must describe a model that transformers builds, got {said}; {_REMEDY}"
    ) from error


def check_count(meta: nn.Module, file: Path, stored: int) -> None:
    """ConfigError for a model, built without numbers, of more weights than the `stored` numbers of its files."""
    wanted = _numbers(meta)
    if wanted > 2 * stored + 2**24:
        raise ConfigError(
            f"model must have the weights that its config.json describes, but {str(file)!r} describes {wanted:,} "
            f"numbers and the safetensors files beside it hold {stored:,}; {_REMEDY}"
        )


def check_memory(meta: nn.Module, file: Path) -> None:
    """ConfigError for a model, built without numbers, whose random ones do not fit in this machine's memory."""
    wanted, memory = 4 * _numbers(meta), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > memory:
        raise ConfigError(
            f"model must fit in memory, but {str(file)!r} describes {wanted // 4:,} weights, whose random numbers take "
            f"{wanted / 2**30:,.0f} GiB of {memory / 2**30:,.0f}; make its sizes smaller, or give a checkpoint"
        )


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_kind(settings: dict[str, Any], file: Path, trust_remote_code: bool) -> None:
    model_type = settings.get("model_type")
    if settings.get("auto_map"):
        if not trust_remote_code:
            raise ConfigError(
                f"model: {str(file)!r} names code of its own (auto_map), which must be allowed to run; "
                "read that code, then set trust_remote_code"
            )
        return
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for name in ("quantization_config", "compression_config"):
            if (quantized := part.get(name)) is not None:
                method = quantized.get("quant_method") if isinstance(quantized, dict) else _shown(quantized)
                raise ConfigError(
                    f"model must have its weights in full, but {str(file)!r} is quantized ({method}); give the model's "
                    "own checkpoint, and lora.r with lora.load_in_4bit, which quantizes it as it is loaded"
                )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        hint = did_you_mean(model_type[:100], CONFIG_MAPPING.keys()) if isinstance(model_type, str) else ""
        raise ConfigError(
            f"model_type must be one that transformers knows, got {_shown(model_type)}{hint} ({str(file)!r})"
        )


def _check_values(settings: dict[str, Any], file: Path) -> None:
    """ConfigError for a value that is no size, no number, or beyond any model."""

    def refuse(name: str, value: object, rule: str) -> NoReturn:
        raise ConfigError(f"model: {name} must be {rule}, got {_shown(value)} ({str(file)!r}); {_REMEDY}")

    layers, experts = [1], [1]
    for name, key, value, depth in _walk(settings):
        if depth > _DEEPEST:
            raise ConfigError(f"model: {str(file)!r} must be JSON, in at most {_DEEPEST} levels; {_REMEDY}")
        if key.endswith("_config") and not isinstance(value, dict | None):
            refuse(name, value, "an object of settings")
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and "limit" not in key)):
            refuse(name, value, "a finite number")
        if isinstance(value, bool) and key in _CORE:
            refuse(name, value, "a whole number")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _POSITIVE and value is not None and not (is_number and value > 0):
            refuse(name, value, "> 0")
        if not is_number:
            continue
        if key in _CORE and value < 1:
            refuse(name, value, "> 0")
        if value < 0 and key.endswith(("_eps", "epsilon", "window", "dropout", "pdrop", "initializer_range")):
            refuse(name, value, ">= 0")
        most = next((most for words, most in _MOST if words.search(key)), None)
        if isinstance(value, int) and most is not None and value > most:
            refuse(name, value, f"at most {most:,}")
        if key.endswith(("layers", "layer", "experts")):
            (experts if key.endswith("experts") else layers).append(int(value))
    if max(layers) * max(experts) > _MOST_MODULES:
        refuse("layers times experts", max(layers) * max(experts), f"at most {_MOST_MODULES:,}")


def _check_heads(config: PreTrainedConfig, file: Path) -> None:
    """ConfigError unless key heads serve equally many heads."""
    own = vars(config)
    heads, shared = own.get("num_attention_heads"), own.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise ConfigError(
            f"model: num_key_value_heads must divide num_attention_heads ({heads}), got {shared} ({str(file)!r}); "
            f"{_REMEDY}"
        )


def _walk(settings: dict[str, Any]) -> Iterator[tuple[str, str, Any, int]]:
    """Every value below an object: its path, its setting's name, the value, and how deep it is."""
    waiting: list[tuple[str, str, Any, int]] = [(key, key, value, 1) for key, value in settings.items()]
    seen = 0
    while waiting:
        name, key, value, depth = waiting.pop()
        yield name, key, value, depth
        seen += 1
        if depth > _DEEPEST or seen > _MOST_ENTRIES:
            continue
        if isinstance(value, dict):
            waiting += [(f"{name}.{inner}", inner, below, depth + 1) for inner, below in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{name}[{at}]", key, below, depth + 1) for at, below in enumerate(value)]


def _blamed(settings: dict[str, Any], message: str) -> tuple[str, Any] | None:
    """The only setting without which transformers takes the rest, or a part of it; else what an error speaks of."""
    spoken_of = _spoken_of(settings, message)
    without = {name: {key: value for key, value in settings.items() if key != name} for name in settings}
    found = [] if _is_taken(settings) else [name for name, others in without.items() if _is_taken(others)]
    if len(found) != 1 or (spoken_of and spoken_of[0].startswith((f"{found[0]}.", f"{found[0]}["))):
        return spoken_of
    return found[0], settings[found[0]]


def _is_taken(settings: dict[str, Any]) -> bool:
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return False
    try:
        CONFIG_MAPPING[kind].from_dict(copy.deepcopy(settings)).get_text_config()
    except Exception:  # transformers raises whatever a value leads to
        return False
    return True


def _spoken_of(settings: dict[str, Any], message: str) -> tuple[str, Any] | None:
    """The setting whose name an error has in it, or else whose value."""
    words = re.findall(r"[A-Za-z_]\w+|-?\d+", message)
    values = [(name, key, value) for name, key, value, depth in _walk(settings) if depth <= 3 and key != "model_type"]

    def first(fits: Callable[[str, str, Any], bool]) -> tuple[str, Any] | None:
        return next(((name, value) for word in words for name, key, value in values if fits(word, key, value)), None)

    return (
        first(lambda word, key, value: word == key and "_" in key and not isinstance(value, dict))
        or first(lambda word, _, value: word == value)
        or next(((name, value) for name, _, value in values if isinstance(value, str) and repr(value) in message), None)
        or first(lambda word, key, value: key in _CORE and word == str(value))
        or first(lambda word, key, _: word == key and "_" in key)
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
