"""Load a causal language model ready for packed batches: packed attention, no cache, no dropout."""

from __future__ import annotations

import copy
import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from pyprefopt.errors import ConfigError, agreeing, counted
from pyprefopt.modeling.attention.backends import UNPACKED, check_way
from pyprefopt.modeling.attention.packed import ATTENTION_NAME, WAY_SETTING
from pyprefopt.modeling.checkpoints.adapters import LoraSettings, add_lora
from pyprefopt.modeling.checkpoints.configuration import (
    check_count,
    check_memory,
    read_config,
    read_json,
    refuse_config,
)
from pyprefopt.modeling.checkpoints.noise import without_bars, without_load_report
from pyprefopt.modeling.checkpoints.quantized import TRAINED_IN_4BIT, check_packable, loading_options, take_over
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.modeling.checkpoints.weights import check_numbers, stored_tensors
from pyprefopt.modeling.cpu_matmul import use_fast_products
from pyprefopt.modeling.packed_model import body
from pyprefopt.modeling.proof import prove, steady_layers
from pyprefopt.modeling.rotary import give_documents_their_own
from pyprefopt.modeling.steady import keep_in_evaluation
from pyprefopt.modeling.tiny_copy import parts_of
from pyprefopt.storage.hub import EMBEDDED_MODEL, local

logger = logging.getLogger(__name__)

Head = Literal["language", "reward", "score"]
_SCORE = "score.weight"  # of the head of a reward model
# Head -> how transformers builds it, for which architectures, what it is called, weights that a checkpoint may lack.
_HEADS: dict[str, tuple[Any, Any, str, frozenset[str]]] = {
    "language": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "causal language model", frozenset()),
    "reward": (
        AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "model with a sequence classification class", frozenset({_SCORE}),
    ),
    "score": (
        AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "model with a sequence classification class", frozenset(),
    ),
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    trust_remote_code: bool = False,
    gradient_checkpointing: bool = False,
    attention: str = "auto",
    lora: LoraSettings | None = None,
    load_in_4bit: bool = False,
    vocab_size: int | None = None,
    head: Head = "language",
    pad_token_id: int | None = None,
) -> PreTrainedModel:
    """Load a language model whose attention reads packed batches.

    Every dropout of the model, of whole layers too, is set to 0, and layers that compute something else in training
    stay in evaluation, so that policy and reference agree at step 0; LoRA's own dropout stays.

    Args:
        source: a directory (safetensors), a hub name, or a config.json file (random weights from `seed`, whatever the
            state of torch's generator, which is left as it was). Nothing is downloaded unless it is a hub name.
            `embedded:tiny` is a config.json whose vocabulary is as large as `vocab_size`.
        dtype: float32, bfloat16 or float64 (tests), of weights and computation.
        seed: of weights that `source` does not have, and of the adapter's.
        trust_remote_code: whether code that comes with the model may run.
        gradient_checkpointing: recompute each layer in the backward pass: less memory, slower.
        attention: what computes it: flash, varlen, flex, loop, unpacked (each document in transformers' own forward),
            or auto (the first of these that can, which is logged).
        lora: anything with r, alpha, dropout and target_modules; r > 0 wraps the model with PEFT.
        load_in_4bit: the linear layers but the head are stored as NF4 (QLoRA); `source` must have weights.
        vocab_size: number of ids of the tokenizer.
        head: `reward` puts one linear unit in the place of the language model's head, random from `seed` unless
            `source` has it; `score` is the same of a `source` that must have it.
        pad_token_id: with the heads `reward` and `score`, the id that transformers skips at the end of padded texts
            (None: it refuses padded ones), and must not be one that a response may end with.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        ConfigError: there is no such model, its files are damaged or incomplete, it has fewer embeddings than
            `vocab_size`, its architecture does not compute the same in a pack, or a setting breaks its rule.

    Example:
        >>> model = load_model("models/base", dtype="bfloat16")  # doctest: +SKIP
    """
    wanted, way = _dtype(dtype), check_way(attention)
    path = resolve_source(source, trust_remote_code=trust_remote_code)
    config, original, unsteady = _configured(path, way, trust_remote_code, head, pad_token_id)
    if source == EMBEDDED_MODEL and vocab_size is not None:
        config.vocab_size = original.vocab_size = vocab_size
    if load_in_4bit:
        _refuse_packing_anew(config, path)
    model = _build_model(
        path, config, wanted, seed=seed, trust_remote_code=trust_remote_code, load_in_4bit=load_in_4bit, head=head
    )
    if path.is_file():
        logger.warning("%s: weights are random (seed %d), because only a configuration was given", path, seed)
    _check_vocabulary(model, vocab_size, str(source))
    _switch_off_dropout(model)
    use_fast_products(body(model))
    give_documents_their_own(model)
    _steady(model, steady_layers(model) if unsteady is None else unsteady, gradient_checkpointing)
    model.source_config = original  # what `save_policy` writes
    if gradient_checkpointing:
        _checkpoint_activations(model)
    model.train()
    return add_lora(model, lora, seed) if lora is not None and lora.r > 0 else model


def sketch_model(
    source: str | Path,
    *,
    trust_remote_code: bool = False,
    load_in_4bit: bool = False,
    head: Head = "language",
    attention: str = "auto",
) -> PreTrainedModel:
    """`load_model` without numbers: the model on the meta device, in a moment whatever its size.

    Raises:
        ConfigError: what `load_model` would refuse before it reads weights, and damaged files of these.
    """
    path = resolve_source(source, trust_remote_code=trust_remote_code)
    config, _, _ = _configured(path, check_way(attention), trust_remote_code, head, None)
    if load_in_4bit:
        _refuse_packing_anew(config, path)
    model = _sketched(config, head, trust_remote_code)
    if load_in_4bit:
        check_packable(model)
    return model


def toy_config(vocab_size: int, *, bos_token_id: int | None = None, eos_token_id: int | None = None) -> dict[str, Any]:
    """The embedded tiny model as the content of a config.json: Llama, 2 layers, hidden size 128, own head.

    Args:
        vocab_size: number of ids of the tokenizer.
        bos_token_id: the id that begins a text; None: the config has none.
        eos_token_id: the id that ends a text; None: the config has none.

    Returns:
        The settings, which `json.dumps` writes as they are.

    Example:
        >>> toy_config(300)["hidden_size"]
        128
    """
    settings: dict[str, Any] = json.loads(local(EMBEDDED_MODEL).read_text(encoding="utf-8"))
    return settings | {"vocab_size": vocab_size, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted not in DTYPES.values():
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}; fp16 is refused")
    return cast("torch.dtype", wanted)


def _configured(
    path: Path, way: str, trust_remote_code: bool, head: Head, pad_token_id: int | None
) -> tuple[PreTrainedConfig, PreTrainedConfig, frozenset[str] | None]:
    """The configuration at `path`, prepared for packed batches, and as it was; and what `prove` gives."""
    config = read_config(path, trust_remote_code=trust_remote_code)
    if head == "score":
        _check_scores(path, config)
    if head == "language" and path.is_dir() and _SCORE in stored_tensors(path):
        raise ConfigError(
            f"model must be a language model, got a reward model in {str(path)!r} (it has {_SCORE}); reward models are "
            "for method reward, and for --reward_model of rank and evaluate rewardbench"
        )
    if head != "language":
        config.num_labels, config.get_text_config().pad_token_id = 1, pad_token_id
        config.pad_token_id = pad_token_id
    original = copy.deepcopy(config)
    _prepare(config, way)
    _, architectures, kind, _ = _HEADS[head]
    if type(config) not in architectures and not trust_remote_code:
        raise ConfigError(f"model must be a {kind}, got model_type {config.model_type!r} ({str(path)!r})")
    if _is_known(config):
        _check_build(path, config, head)
    proof = prove(config, lambda tiny: _random_model(tiny, head, trust_remote_code))
    if proof.unpacked is not None:
        config._attn_implementation = proof.attention
        for part in parts_of(config):
            setattr(part, WAY_SETTING, UNPACKED)
        if way != UNPACKED:
            _warn_of_unpacked(config.model_type, proof.unpacked)
    return config, original, proof.unsteady


def _check_scores(path: Path, config: PreTrainedConfig) -> None:
    """ConfigError for what has no trained head of one output: a random one would give random scores."""
    stored = stored_tensors(path) if path.is_dir() else {}
    score, hidden = stored.get(_SCORE), getattr(config.get_text_config(), "hidden_size", None)
    remedy = "give what method reward, or AutoModelForSequenceClassification with num_labels 1, has saved"
    if score is None:
        found = f"no {_SCORE} in {str(path)!r}" if stored else f"{str(path)!r}, which has no weights"
        raise ConfigError(f"a reward model must have the weights of its head ({_SCORE}), got {found}; {remedy}")
    if hidden and score.size != hidden:
        raise ConfigError(
            f"a reward model must have one output, got {score.size // hidden} (num_labels) in {str(path)!r}; {remedy}"
        )


@lru_cache
def _warn_of_unpacked(model_type: str, reason: str) -> None:
    """Once a process: runs load a model several times."""
    logger.warning(
        "attention: unpacked, every document of model_type %r goes through transformers' own forward, which is slower "
        "(%s)", model_type, reason,
    )  # fmt: skip


def _is_known(config: PreTrainedConfig) -> bool:
    """Whether the architecture is transformers' own: others may need numbers to be built."""
    return type(config).__module__.startswith("transformers.models.")


def _check_build(path: Path, config: PreTrainedConfig, head: Head) -> None:
    """ConfigError for what transformers cannot build, or does not fit the files of weights."""
    file = path if path.is_file() else path / "config.json"
    plain = copy.deepcopy(config)
    plain._attn_implementation = "eager"
    try:
        model = _sketched(plain, head, trust_remote_code=False)
    except Exception as error:  # whatever a configuration leads to
        refuse_config(file, read_json(file), error)
    if path.is_dir():
        stored = stored_tensors(path)
        check_count(model, file, sum(tensor.size for tensor in stored.values()))
        check_numbers(stored, (name for name, _ in model.named_parameters()))


def _sketched(config: PreTrainedConfig, head: Head, trust_remote_code: bool) -> PreTrainedModel:
    """The model on the meta device."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _random_model(config, head, trust_remote_code)


def _steady(model: PreTrainedModel, names: frozenset[str], gradient_checkpointing: bool) -> None:
    """Keep the layers of these classes in evaluation."""
    count = keep_in_evaluation(model, names)
    if count:
        logger.warning(
            "%s: %d layers (%s) compute something else in training than in evaluation, at random or by design; they "
            "stay in evaluation, so that policy, reference and users compute the same%s",
            type(model).__name__, count, ", ".join(sorted(names)),
            "; those that are checkpoints of their own keep their activations" if gradient_checkpointing else "",
        )  # fmt: skip


def _random_model(config: PreTrainedConfig, head: Head, trust_remote_code: bool) -> PreTrainedModel:
    """In float32, with the attention that the config names."""
    options = {"attn_implementation": config._attn_implementation, "trust_remote_code": trust_remote_code}
    model: PreTrainedModel = _HEADS[head][0].from_config(config, dtype=torch.float32, **options)
    _switch_off_dropout(model)
    return model


def _switch_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _refuse_packing_anew(config: PreTrainedConfig, path: Path) -> None:
    """ConfigError for a model that QLoRA has trained: in 4 bits it would be rounded back to what it was before."""
    if getattr(config, TRAINED_IN_4BIT, False):
        raise ConfigError(
            f"lora.load_in_4bit needs a model that was not trained with it, got {str(path)!r} (its config.json has "
            f"{TRAINED_IN_4BIT}): packed anew, it loses most of what it has learned; leave load_in_4bit out to go on "
            "from it, or give the model that it was trained from"
        )


def _prepare(config: PreTrainedConfig, way: str) -> None:
    """Packed attention, no cache, no dropout, and no outputs but the hidden states."""
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"model must be a decoder, but model_type {config.model_type!r} is an encoder-decoder")
    config._attn_implementation = ATTENTION_NAME
    asked: set[str] = set()
    for part in parts_of(config):
        part.use_cache, part.return_dict = False, True
        setattr(part, WAY_SETTING, way)
        for name, value in list(vars(part).items()):
            random = "dropout" in name or name.endswith(("pdrop", "layerdrop"))
            if random and isinstance(value, int | float) and not isinstance(value, bool) and value:
                setattr(part, name, 0.0)
            elif name.startswith("output_") and value is True:
                setattr(part, name, False)
                asked.add(name)
    if asked:
        logger.info(
            "%s: %s set false in training, where nothing reads that; the saved config.json keeps it",
            config.model_type, ", ".join(sorted(asked)),
        )  # fmt: skip


def _build_model(
    path: Path, config: PreTrainedConfig, dtype: torch.dtype, *, seed: int, trust_remote_code: bool,
    load_in_4bit: bool, head: Head,
) -> PreTrainedModel:  # fmt: skip
    """Random float32 weights, then rounded, for a config file; else the directory's. No generator is disturbed."""
    auto, _, kind, optional = _HEADS[head]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's generator alone: others are not forked
        if path.is_file() and load_in_4bit:
            raise ConfigError(
                f"load_in_4bit needs a model with weights to quantize, got {str(path)!r}; give the directory or hub "
                "name of a checkpoint"
            )
        if path.is_file():
            if _is_known(config):
                check_memory(_sketched(config, head, trust_remote_code), path)
            try:
                model = _random_model(config, head, trust_remote_code)
            except Exception as error:  # what only shows where there are numbers
                refuse_config(path, read_json(path), error)
            for parameter in model.parameters():  # not `model.to`: rotary frequencies need float32
                parameter.data = parameter.data.to(dtype)
            return model
        options = (loading_options(dtype) if load_in_4bit else {}) | _generation_options(path, config)
        try:
            with without_load_report(), without_bars():
                model, info = auto.from_pretrained(
                    path, config=config, dtype=dtype, local_files_only=True, use_safetensors=True,
                    output_loading_info=True, attn_implementation=config._attn_implementation,
                    trust_remote_code=trust_remote_code, ignore_mismatched_sizes=True, **options,
                )  # fmt: skip
        except ConfigError:
            raise
        except Exception as error:  # whatever transformers raises for files that do not fit together
            refuse_config(path / "config.json", read_json(path / "config.json"), error)
    if mismatched := sorted(tuple(key) for key in info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ConfigError(
            f"model {str(path)!r} has {len(mismatched)} weights of other shapes than its config.json says (first: "
            f"{name} is {list(stored)}, not {list(wanted)}); give the config.json and the weights of one model"
        )
    if load_in_4bit:
        take_over(model)
    if missing := sorted(set(info["missing_keys"]) - optional):
        raise ConfigError(
            f"model {str(path)!r} has not all weights of {type(model).__name__}: {len(missing)} are missing (first: "
            f"{missing[0]}) and would be random; give a checkpoint of a {kind}"
        )
    if unexpected := sorted(name for name in info["unexpected_keys"] if head == "language" or "lm_head" not in name):
        logger.warning(
            "%s: %s %s not used (first: %s)",
            path,
            counted(len(unexpected), "weight"),
            agreeing(len(unexpected), "are"),
            unexpected[0],
        )
    return cast("PreTrainedModel", model)


def _generation_options(path: Path, config: PreTrainedConfig) -> dict[str, Any]:
    """Options with which transformers loads a model whose generation_config.json it would not take."""
    file = path / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        GenerationConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises whatever a value leads to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        logger.warning(
            "%s is not used, and not saved with the policy: transformers does not take it (%s); correct it there to "
            "have its settings in the policy", file, reason,
        )  # fmt: skip
        return {"generation_config": GenerationConfig.from_model_config(config)}
    return {}


def _check_vocabulary(model: PreTrainedModel, vocab_size: int | None, source: str) -> None:
    embeddings = model.get_input_embeddings().weight.shape[0]
    if vocab_size is not None and vocab_size > embeddings:
        raise ConfigError(
            f"the tokenizer must not have more ids than the model has embeddings ({embeddings}, {source!r}), "
            f"got {vocab_size}; use the model's own tokenizer"
        )


def _checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute each layer in the backward pass; the method has two names within transformers 5."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
