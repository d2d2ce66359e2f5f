"""Write a policy or a reward model as a directory that transformers' `AutoModelFor…` classes load."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pyprefopt.errors import ArtifactError
from pyprefopt.modeling.checkpoints.adapters import is_lora, merged_state_dict, save_adapter
from pyprefopt.modeling.checkpoints.quantized import TRAINED_IN_4BIT, QuantizedLinear
from pyprefopt.modeling.packed_model import PackedModel, causal_lm
from pyprefopt.storage.files import copy_into
from pyprefopt.storage.folders import replacing

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def save_policy(
    model: nn.Module,
    directory: str | Path,
    tokenizer_files: Iterable[str | Path] | None = None,
    *,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Write a model to a directory, all of it or nothing.

    LoRA is merged into the weights; the adapter alone is in `adapter/`. The configuration is the source's own: its
    attention, cache and dropout settings, not those of training.

    Args:
        model: a packed, PEFT or plain transformers model.
        directory: where it is written; one that exists is replaced.
        tokenizer_files: are copied beside the model; folders among them with what they hold.
        state_dict: weights, by the names of `model.state_dict()`, in place of the model's own, for exports from ZeRO-3.

    Returns:
        The directory, which `AutoModelForCausalLM` (of a reward model `AutoModelForSequenceClassification`) loads.

    Raises:
        ArtifactError: `state_dict` has not the model's names.

    Example:
        >>> save_policy(model, "models/policy", ["models/base/tokenizer.json"])  # doctest: +SKIP
    """
    target = Path(directory)
    with replacing(target) as partial:
        _write(model, partial, state_dict)
        for file in tokenizer_files or ():
            copy_into(file, partial)
    return target


def _write(model: nn.Module, directory: Path, state_dict: dict[str, Tensor] | None) -> None:
    if isinstance(model, PackedModel):
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
        model = model.model
    causal = causal_lm(model)
    weights = dict(model.state_dict()) if state_dict is None else state_dict
    _check_names(model, causal, weights)
    if is_lora(model):
        save_adapter(model, directory / "adapter", weights)
    weights = merged_state_dict(model, weights)
    tied = getattr(causal, "all_tied_weights_keys", None) or {}
    weights = {name: tensor for name, tensor in weights.items() if tied.get(name) not in weights}
    dtype = next(iter(weights.values())).dtype
    _save_transformers(causal, directory, weights)
    config = copy.deepcopy(getattr(causal, "source_config", causal.config))
    config.architectures, config.dtype = [type(causal).__name__], str(dtype).removeprefix("torch.")
    if any(isinstance(module, QuantizedLinear) for module in causal.modules()):
        setattr(config, TRAINED_IN_4BIT, True)  # `load_model` will not pack it anew
    config.save_pretrained(directory)


def _save_transformers(causal: PreTrainedModel, directory: Path, weights: dict[str, Tensor]) -> None:
    """As transformers writes a model, its settings of generation too where they contradict each other.

    transformers loads such settings, but refuses to write them.
    """
    own = getattr(causal, "generation_config", None)
    if own is None:
        causal.save_pretrained(directory, state_dict=weights)
        return
    causal.generation_config = type(own)()
    try:
        causal.save_pretrained(directory, state_dict=weights)
    finally:
        causal.generation_config = own
    own.to_json_file(directory / "generation_config.json")


def _check_names(model: nn.Module, causal: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """ArtifactError unless `weights` are the model's, all of them but those tied to others."""
    expected = set(model.state_dict())
    tied = tuple(getattr(causal, "all_tied_weights_keys", None) or ())
    missing = sorted(name for name in expected - set(weights) if not name.endswith(tied))
    for names, what in ((sorted(set(weights) - expected), "does not know"), (missing, "also needs")):
        if names:
            raise ArtifactError(f"state_dict: {len(names)} names that the model {what} (first: {names[0]!r})")
