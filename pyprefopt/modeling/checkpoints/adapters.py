"""LoRA through PEFT: adding adapters, and merging them into plain weights without touching the model."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.modeling.checkpoints.quantized import QuantizedLinear, dense_weights
from pyprefopt.modeling.cpu_matmul import FastLinear

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_SCORE = "score"  # the head of a reward model
_ORIGINAL, _TRAINED = ".original_module.", ".modules_to_save.default."  # in names of weights of a head under PEFT

logger = logging.getLogger(__name__)


class LoraSettings(Protocol):
    """What `add_lora` reads; the `LoraConfig` of a run's settings is one."""

    @property
    def r(self) -> int: ...  # noqa: D102
    @property
    def alpha(self) -> int: ...  # noqa: D102
    @property
    def dropout(self) -> float: ...  # noqa: D102
    @property
    def target_modules(self) -> tuple[str, ...]: ...  # noqa: D102


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int = 0) -> PreTrainedModel:
    """Wrap a model with PEFT and LoRA on `target_modules` (empty: every plain linear layer but the head).

    The head of a reward model, `score`, is trained whole, and saved with the adapter. The adapters start as the
    identity (B = 0) in the dtype of the model; torch's generator is left as it was.

    Args:
        model: from `load_model` without LoRA.
        settings: rank, scale, dropout and target modules.
        seed: of the adapters' first weights.

    Raises:
        ConfigError: a target that does not exist, shares weights with the embeddings, is the head of a reward model, or
            cannot be merged.
    """
    from peft import LoraConfig, get_peft_model

    layers = _linear_layers(model)
    linear = sorted({_last(name) for name in layers})
    known = {_last(name) for name, _ in model.named_modules()}
    for target in settings.target_modules:
        if _last(target) not in known:
            what = "no layer"
            if any(_last(name) == _last(target) for name, _ in model.named_parameters()):
                what = "no layer, but only a bare weight,"  # of several experts in one
            raise ConfigError(
                f"lora.target_modules: the model has {what} {target!r}{did_you_mean(target, known)}; its linear "
                f"layers are {', '.join(linear) or 'none'}"
            )
    tied = {_last(name.removesuffix(".weight")) for name in getattr(model, "all_tied_weights_keys", None) or ()}
    if both := tied & {_last(target) for target in settings.target_modules}:
        raise ConfigError(f"lora.target_modules: {sorted(both)} share weights with the embeddings; leave them out")
    scores = model.get_output_embeddings() is None and hasattr(model, _SCORE)
    if scores and _SCORE in {_last(target) for target in settings.target_modules}:
        raise ConfigError(
            f"lora.target_modules: {_SCORE} is the reward model's head, which is trained whole; leave it out"
        )
    targets: Any = list(settings.target_modules) or layers or "all-linear"  # what PEFT finds then is refused below
    if not settings.target_modules:
        _log_frozen(model, linear)
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets,
        bias="none", task_type="SEQ_CLS" if scores else "CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT 0.21 asks for it
        torch.default_generator.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
        except (ValueError, AttributeError, TypeError, RuntimeError) as error:  # a layer of a kind that takes none
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ConfigError(
                f"lora.target_modules: {reason}; name linear layers, of which this model has "
                f"{', '.join(linear) or 'none'}"
            ) from error
    _check_mergeable(wrapped)
    for parameter in wrapped.parameters():  # on quantized layers they are float32 whatever the model's dtype
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # the same bytes from every process
    return cast("PreTrainedModel", wrapped)


def load_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Put a trained adapter on the model that it was trained on.

    Args:
        model: from `load_model` without LoRA.
        adapter: a folder as PEFT writes it, with adapter_model.safetensors.

    Returns:
        The model behind PEFT, in evaluation mode; `adapters_off` turns the adapter off.

    Raises:
        ConfigError: no safetensors, or an adapter of another model.
    """
    from peft import LoraConfig, PeftModel
    from safetensors.torch import load_file

    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        raise ConfigError(f"{adapter} has no {file.name}; save the adapter as safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config = LoraConfig(**{f.name: settings[f.name] for f in fields(LoraConfig) if f.init and f.name in settings})
    try:
        wrapped = PeftModel(model, config, autocast_adapter_dtype=False)
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{adapter} does not fit the model: {reason}; give the model that it was trained on"
        ) from error
    own = {name: value for name, value in wrapped.state_dict().items() if is_adapter(name)}
    stored = {name.replace(".weight", ".default.weight"): value for name, value in load_file(file).items()}
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in stored.items()}:
        raise ConfigError(f"{adapter} has other tensors than an adapter of this model; give the model that it is of")
    for name, value in stored.items():
        own[name].copy_(value)
    return cast("PreTrainedModel", wrapped.eval())


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the layers that compute x W' + b and nothing else, but the head; a router that is one too does more."""
    head = model.get_output_embeddings() or getattr(model, _SCORE, None)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and _is_plain(cast("Any", type(module)))
    ]


@lru_cache
def _is_plain(kind: Any) -> bool:
    """Whether layers of this class compute x W' + b: known to, or seen to on made-up numbers."""
    if kind.forward in (torch.nn.Linear.forward, FastLinear.forward, QuantizedLinear.forward):
        return True
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
            layer, x = kind(3, 2), torch.randn(4, 3)
            return torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    except Exception:  # whatever a class raises that is made or called otherwise
        return False


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _log_frozen(model: nn.Module, linear: list[str]) -> None:
    """Log which matrices of several experts in one get no adapter, being no layers."""
    bare = sorted({_last(name) for name, parameter in model.named_parameters() if parameter.ndim > 2})
    if bare:
        logger.warning(
            "lora: adapters on %s; %s stay as they are, which are no linear layers", ", ".join(linear), ", ".join(bare)
        )


def _check_mergeable(model: nn.Module) -> None:
    """ConfigError for an adapter that `merged_state_dict` cannot merge."""
    from peft.tuners.lora import Linear

    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        plain = isinstance(module, Linear) and _is_plain(cast("Any", type(base_layer(module))))
        if not plain or module.fan_in_fan_out or any(module.use_dora.values()):
            layer, kind = name.removeprefix("base_model.model."), type(base_layer(module)).__name__
            raise ConfigError(
                f"lora.target_modules must be linear layers, whose plain adapters can be merged, got {layer} ({kind}); "
                "name others, or set lora.r 0"
            )


def is_lora(model: nn.Module) -> bool:
    """Whether `model` is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """While inside, `model` computes what it did before `add_lora`.

    PEFT's own switch also turns the adapters' `requires_grad` off and on, which is not for the middle of a step.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def base_layer(layer: nn.Module) -> nn.Module:
    """`layer` without the adapter on it, where it has one."""
    return cast("nn.Module", layer.get_base_layer()) if hasattr(layer, "get_base_layer") else layer  # type: ignore[operator]


def trained_head(head: nn.Module | None) -> nn.Module | None:
    """The head that is trained whole beside adapters, without PEFT's wrapper around it."""
    wrapped: Any = getattr(head, "modules_to_save", None)
    return head if wrapped is None else cast("nn.Module", wrapped["default"])


def base_name(name: str) -> str | None:
    """What a weight of a PEFT model is called in the model that it wraps; None of the adapter's own."""
    if is_adapter(name):
        return None
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(_ORIGINAL, ".")


def is_adapter(name: str) -> bool:
    """Whether a weight of this name is in the adapter's file."""
    return ".lora_" in name or _TRAINED in name


def save_adapter(model: nn.Module, directory: Path, state_dict: dict[str, Tensor]) -> None:
    """Write the adapter alone, as PEFT reads it; `state_dict` has the PEFT model's names.

    No path of this machine goes into the files, so the same adapter is the same bytes everywhere.
    """
    # save_embedding_layers: anything but False may ask the hub whether the vocabulary has grown
    model.save_pretrained(directory, state_dict=dict(state_dict), save_embedding_layers=False)  # type: ignore[operator]
    (directory / "README.md").unlink(missing_ok=True)  # an empty form
    file = directory / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def merged_state_dict(model: nn.Module, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The plain model's weights with LoRA merged: W + scaling * B A, added in float32, rounded once.

    W of a quantized layer is what it computes with. `state_dict` has the PEFT model's names (default: its own
    weights). Neither it nor the model is changed.
    """
    _check_mergeable(model)
    state = dense_weights(model, dict(model.state_dict() if state_dict is None else state_dict))
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        key = f"{name}.base_layer.weight"
        weight = state[key]
        total = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for adapter in module.active_adapters:
            a, b = state[f"{name}.lora_A.{adapter}.weight"], state[f"{name}.lora_B.{adapter}.weight"]
            total = total + module.scaling[adapter] * (b.to(total) @ a.to(total))
        state[key] = total.to(weight.dtype)
    plain = {base_name(name): tensor for name, tensor in state.items()}
    heads = {base_name(name.replace(_TRAINED, _ORIGINAL)): state[name] for name in state if _TRAINED in name}
    return {name: tensor for name, tensor in (plain | heads).items() if name is not None}
