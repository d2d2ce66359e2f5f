"""The user's JSON file of DeepSpeed settings: read, looked through for names, and laid under our own settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.settings.config import OptimConfig, RunConfig
from pyprefopt.settings.values import fit
from pyprefopt.storage.files import explain_reading

# What the file may hold beside what we set: a type, or the types of a section. SECTIONS are DeepSpeed's to know.
_SETTINGS: dict[str, Any] = {
    "communication_data_type": str | None, "disable_allgather": bool, "disable_python_gc": bool, "dump_state": bool,
    "gradient_predivide_factor": float, "log_level": str, "memory_breakdown": bool, "prescale_gradients": bool,
    "steps_per_print": int | None, "vocabulary_size": int | None, "wall_clock_breakdown": bool,
    "zero_allow_untested_optimizer": bool,
    "activation_checkpointing": {
        "partition_activations": bool, "number_checkpoints": int | None, "contiguous_memory_optimization": bool,
        "synchronize_checkpoint_boundary": bool, "profile": bool, "cpu_checkpointing": bool,
    },
    "aio": {
        "block_size": int, "queue_depth": int, "intra_op_parallelism": int, "single_submit": bool,
        "overlap_events": bool, "use_gds": bool,
    },
    "data_types": {
        "grad_accum_dtype": str | None, "param_dtype": str | None, "buffer_dtype": str | None,
        "keep_in_fp32_modules": str | tuple[str, ...],
    },
    "flops_profiler": {
        "enabled": bool, "recompute_fwd_factor": float, "profile_step": int, "module_depth": int, "top_modules": int,
        "detailed": bool, "output_file": str | None,
    },
    "timers": {"throughput": {"enabled": bool, "synchronized": bool}},
}  # fmt: skip
SECTIONS = ("zero_optimization", "fp16", "bf16", "comms_logger", "tensorboard", "wandb", "csv_monitor", "comet")
_DTYPE = "the precision of weights and computation is set by dtype"
_OTHER = "it changes what is trained, and nothing here is made for it"
_REFUSED = {  # what DeepSpeed reads and the file may not set, and why
    "optimizer": "it is AdamW, set by learning_rate, weight_decay, adam_beta1, adam_beta2 and adam_epsilon",
    "scheduler": "it is set by lr_scheduler_type and warmup_ratio",
    "gradient_accumulation_steps": "packing decides how many micro-batches a step has; set global_batch_size",
    "managed_gradient_accumulation": "packing decides how many micro-batches a step has; set global_batch_size",
    "dataloader_drop_last": "batches are packed here; set global_batch_size",
    "gradient_allreduce_op": "gradients are averaged over the ranks",
    "compile": "it is set by compile",
    "bfloat16": "it is called bf16 today",
    **dict.fromkeys(("checkpoint", "datastates_ckpt", "nebula"), "checkpoints are set by save_steps, save_total_limit"),
    **dict.fromkeys(("torch_autocast", "amp"), _DTYPE),
    **dict.fromkeys(
        ("autotuning", "compression_training", "curriculum_learning", "data_efficiency", "eigenvalue", "elasticity",
         "expert_parallel", "graph_harvesting", "hybrid_engine", "pipeline", "progressive_layer_drop",
         "quantize_training", "seq_parallel_communication_data_type", "sequence_parallel_size", "sparse_attention",
         "sparse_gradients", "tensor_parallel", "use_data_before_expert_parallelism", "weight_quantization"),
        _OTHER,
    ),
}  # fmt: skip


def with_file(ours: Mapping[str, Any], run: RunConfig, optim: OptimConfig) -> dict[str, Any]:
    """Our settings and those of the file `run.deepspeed` that ours leave open; "auto" in the file takes ours.

    Raises:
        ConfigError: the file cannot be read, a name that is unknown at any depth, a value that contradicts ours.
    """
    path = str(run.deepspeed)
    user = _read_json(path)
    stated = {
        "train_batch_size": ("global_batch_size", optim.global_batch_size),
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", run.per_device_train_batch_size),
    }
    for name, reason in _REFUSED.items():
        if user.pop(name, "auto") != "auto":
            raise ConfigError(f"{path}: {name} cannot be set there: {reason}")
    _check_names(user, {**_SETTINGS, **dict.fromkeys((*ours, *stated, *SECTIONS))}, path)
    for name, (setting, value) in stated.items():  # as we mean them; DeepSpeed's own batch arithmetic stays unused
        if not _agrees(user.get(name, "auto"), value):
            raise _conflict(path, name, user[name], setting, value)
        user.pop(name, None)
    settings = {  # DeepSpeed's name -> ours, and its value
        "gradient_clipping": ("max_grad_norm", optim.max_grad_norm),
        "zero_optimization.stage": ("zero_stage", run.zero_stage),
        "bf16.enabled": ("dtype", run.dtype),
        "fp16.enabled": ("dtype", run.dtype),
    }
    return _merge(ours, user, path, settings)


def _read_json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=_once, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ConfigError(f"deepspeed: no file {path!r}; give a JSON file with DeepSpeed settings") from None
    except OSError as error:
        raise ConfigError(f"deepspeed: {path} cannot be read: {explain_reading(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"deepspeed: {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed: {path} must hold a JSON object, got {type(content).__name__}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice; keep one of the two")
    return dict(pairs)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON's")


def _check_names(given: Mapping[str, Any], known: Mapping[str, Any], path: str, prefix: str = "") -> None:
    """ConfigError for a name that is not known, or a value that is not of its type; "auto" comes later."""
    for name, value in given.items():
        full = prefix + name
        if name not in known:
            raise unknown_name(path, full, known)
        if value == "auto" or known[name] is None:
            continue
        if not isinstance(known[name], dict):
            _check_value(value, known[name], path, full)
        elif isinstance(value, Mapping):
            _check_names(value, known[name], path, f"{full}.")
        else:
            raise ConfigError(f"{path}: {full} must be an object with settings, got {value!r}; mend or drop it")


def _check_value(value: object, hint: Any, path: str, name: str) -> None:
    try:
        fit(value, hint, name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; mend or drop it") from None


def unknown_name(path: str, name: str, known: Mapping[str, Any]) -> ConfigError:
    """The error for a name that DeepSpeed does not read, with the nearest of those that it reads there."""
    return ConfigError(f"{path}: DeepSpeed has no setting '{name}'{did_you_mean(name.rpartition('.')[2], known)}")


def _merge(
    ours: Mapping[str, Any],
    user: Mapping[str, Any],
    path: str,
    settings: Mapping[str, tuple[str, object]],
    prefix: str = "",
) -> dict[str, Any]:
    merged = dict(ours)
    for name, value in user.items():
        full = prefix + name
        if isinstance(value, dict) and isinstance(ours.get(name, {}), dict):
            merged[name] = _merge(ours.get(name, {}), value, path, settings, f"{full}.")
        elif name in ours:
            if not _agrees(value, ours[name]):
                raise _conflict(path, full, value, *settings.get(full, ("pyprefopt's own value", ours[name])))
        elif value == "auto":
            raise ConfigError(f'{path}: {full} is "auto", but pyprefopt sets no value for it; give one or drop it')
        else:
            merged[name] = value
    return merged


def _agrees(theirs: object, ours: object) -> bool:
    """Whether a value of the file is ours, or leaves it open; true is no number."""
    return theirs == "auto" or (theirs == ours and isinstance(theirs, bool) == isinstance(ours, bool))


def _conflict(path: str, name: str, theirs: object, setting: str, value: object) -> ConfigError:
    return ConfigError(
        f'{path}: {name} is {theirs!r}, but {setting} is {value!r}; make them equal, or write "auto" in the file'
    )
