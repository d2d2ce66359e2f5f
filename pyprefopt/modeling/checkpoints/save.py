"""Write a policy or a reward model as a directory that transformers' `AutoModelFor…` classes load."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.modeling.attention.packed import WAY_SETTING
from pyprefopt.modeling.checkpoints.adapters import LoraSettings, is_lora, merged_state_dict, save_adapter
from pyprefopt.modeling.checkpoints.configuration import read_config
from pyprefopt.modeling.checkpoints.load import Head, load_model
from pyprefopt.modeling.checkpoints.noise import quiet, without_bars
from pyprefopt.modeling.checkpoints.quantized import TRAINED_IN_4BIT, QuantizedLinear
from pyprefopt.modeling.checkpoints.read_back import Document, find_difference
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.modeling.packed_model import PackedModel, causal_lm
from pyprefopt.modeling.proof import proof_file, remember, with_large_weights
from pyprefopt.modeling.tiny_copy import parts_of, tiny_config
from pyprefopt.storage.files import copy_into
from pyprefopt.storage.folders import replacing

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

GENERATION = "generation_config.json"
logger = logging.getLogger(__name__)


def save_policy(
    model: nn.Module,
    directory: str | Path,
    tokenizer_files: Iterable[str | Path] | None = None,
    *,
    state_dict: dict[str, Tensor] | None = None,
    documents: Sequence[Document] = (),
) -> Path:
    """Write a model to a directory, all of it or nothing, and load it from there as its users will.

    LoRA is merged into the weights; the adapter alone is in `adapter/`. The configuration is the source's own: its
    attention, cache and dropout settings, not those of training.

    Args:
        model: a packed, PEFT or plain transformers model.
        directory: where it is written; one that exists is replaced.
        tokenizer_files: are copied beside the model; folders among them with what they hold.
        state_dict: weights, by the names of `model.state_dict()`, in place of the model's own, for exports from ZeRO-3.
        documents: token ids of which the loaded model must compute what `model` does; none: a made-up one.

    Returns:
        The directory, which `AutoModelForCausalLM` (of a reward model `AutoModelForSequenceClassification`) loads.

    Raises:
        ArtifactError: `state_dict` has not the model's names; or transformers or PEFT make something else of what was
            written, which stays there.

    Example:
        >>> save_policy(model, "models/policy", ["models/base/tokenizer.json"])  # doctest: +SKIP
    """
    target = Path(directory)
    if isinstance(model, PackedModel):
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
        model = model.model
    weights = dict(model.state_dict()) if state_dict is None else state_dict
    with replacing(target) as partial:
        written = _write(model, partial, weights)
        for file in tokenizer_files or ():
            copy_into(file, partial)
    if (difference := find_difference(model, target, weights, written, documents)) is not None:
        raise ArtifactError(
            f"{target} has the model's weights, but {difference}; use a model of another architecture, or another "
            "release of transformers and PEFT"
        )
    return target


def rehearse_saving(
    source: str | Path,
    *,
    dtype: str = "float32",
    lora: LoraSettings | None = None,
    load_in_4bit: bool = False,
    head: Head = "language",
    trust_remote_code: bool = False,
) -> None:
    """Load, save and load again a tiny copy of a model, with random weights, as the trained one will be.

    Where no copy can be made that runs, nothing is said: the model itself is looked at, when it is saved.

    Args:
        source: as for `load_model`, and so are the others.

    Raises:
        ConfigError: transformers or PEFT make something else of what is saved.
    """
    path = resolve_source(source, trust_remote_code=trust_remote_code)
    generation = path / GENERATION if (path / GENERATION).is_file() else None
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code, "head": head}
    added: dict[str, Any] = {"lora": lora, "load_in_4bit": load_in_4bit}
    try:
        tiny = tiny_config(read_config(path, trust_remote_code=trust_remote_code))
        more = [repr((options, added)), version("peft"), "" if generation is None else generation.read_text()]
        if (file := proof_file(tiny, "saving", *more)) is not None and file.is_file():
            return
        with TemporaryDirectory() as folder, quiet("pyprefopt"):
            start = Path(folder) / "start"
            for part in parts_of(tiny):
                vars(part).pop(WAY_SETTING, None)
            tiny.save_pretrained(folder)
            save_policy(with_large_weights(load_model(Path(folder) / "config.json", **options)), start)
            if generation is not None:
                shutil.copyfile(generation, start / GENERATION)
            save_policy(with_large_weights(load_model(start, **options, **added)), Path(folder) / "end")
    except ArtifactError as error:
        reason = str(error).partition(", but ")[2]
        raise ConfigError(f"a model like {source} would be saved, but {reason}") from None
    except Exception as error:  # whatever an architecture raises for sizes that it does not expect
        logger.debug("saving a model like %s was not rehearsed: %s: %s", source, type(error).__name__, error)
        return
    if file is not None:
        remember(file, architecture=tiny.model_type, saving=repr((options, added)))


def _write(model: nn.Module, directory: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write weights, by the model's names; gives those that were written, by the plain model's."""
    causal = causal_lm(model)
    _check_names(model, causal, own)
    if is_lora(model):
        save_adapter(model, directory / "adapter", own)
    weights = merged_state_dict(model, own)
    tied = getattr(causal, "all_tied_weights_keys", None) or {}
    weights = {name: tensor for name, tensor in weights.items() if tied.get(name) not in weights}
    dtype = next(iter(weights.values())).dtype
    _save_transformers(causal, directory, dict(weights))  # it takes some out
    config = copy.deepcopy(getattr(causal, "source_config", causal.config))
    config.architectures, config.dtype = [type(causal).__name__], str(dtype).removeprefix("torch.")
    if any(isinstance(module, QuantizedLinear) for module in causal.modules()):
        setattr(config, TRAINED_IN_4BIT, True)  # `load_model` will not pack it anew
    config.save_pretrained(directory)
    return weights


def _save_transformers(causal: PreTrainedModel, directory: Path, weights: dict[str, Tensor]) -> None:
    """As transformers writes a model, its settings of generation too where they contradict each other.

    transformers loads such settings, but refuses to write them.
    """
    own = getattr(causal, "generation_config", None)
    if own is None:
        with without_bars():
            causal.save_pretrained(directory, state_dict=weights)
        return
    causal.generation_config = type(own)()
    try:
        with without_bars():
            causal.save_pretrained(directory, state_dict=weights)
    finally:
        causal.generation_config = own
    own.to_json_file(directory / GENERATION)


def _check_names(model: nn.Module, causal: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """ArtifactError unless `weights` are the model's, all of them but those tied to others."""
    expected = set(model.state_dict())
    tied = tuple(getattr(causal, "all_tied_weights_keys", None) or ())
    missing = sorted(name for name in expected - set(weights) if not name.endswith(tied))
    for names, what in ((sorted(set(weights) - expected), "does not know"), (missing, "also needs")):
        if names:
            raise ArtifactError(f"state_dict: {len(names)} names that the model {what} (first: {names[0]!r})")
