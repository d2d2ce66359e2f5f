"""Which model a stage starts from, and how it is loaded."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.adapters import is_lora
from pyprefopt.modeling.checkpoints.load import load_model
from pyprefopt.modeling.checkpoints.source import adapter_hash, model_hash, resolve_source
from pyprefopt.modeling.compile import compile_layers
from pyprefopt.modeling.head.choice import Kernel, check_kernel
from pyprefopt.modeling.logps import LogpsModel
from pyprefopt.modeling.packed_model import PackedModel, causal_lm, is_unpacked
from pyprefopt.modeling.reference import ReferencedModel
from pyprefopt.modeling.reward_head import RewardModel
from pyprefopt.modeling.rotary import longest_alike
from pyprefopt.settings.config import LoraConfig, RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import content_hash
from pyprefopt.storage.hub import is_bare, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyprefopt.losses.method import Need

logger = logging.getLogger("pyprefopt")
# Files of tokenizers that are not in the one format that is read here.
SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Source:
    """A model's weights: where they are, and the hash of what they are."""

    path: str
    fingerprint: str
    seed: int = 0  # of random weights, which are part of the fingerprint
    in_4bit: bool = False  # loaded as QLoRA trains it: another model, with another fingerprint

    @classmethod
    def given(cls, path: str, config: RunConfig, *, setting: str = "model") -> Source:
        """A user's directory, hub name or config.json (whose random weights follow from the seed)."""
        resolve_source(path, trust_remote_code=config.trust_remote_code, setting=setting)
        content = model_hash(path, trust_remote_code=config.trust_remote_code)
        return cls(path, content_hash([content, config.seed]) if is_bare(path) else content, config.seed)

    @classmethod
    def adapted(cls, adapter: Path, base: Source) -> Source:
        """A LoRA adapter alone, which is put on `base`."""
        return cls(str(adapter), content_hash([base.fingerprint, adapter_hash(adapter)]), base.seed)

    def to_train(self, config: RunConfig) -> Source:
        """What a training starts from, and so its reference: these weights, or (lora.load_in_4bit) these in 4 bits."""
        if not config.lora.load_in_4bit:
            return self
        return replace(self, fingerprint=content_hash([self.fingerprint, "nf4"]), in_4bit=True)


def start_model(config: RunConfig) -> Source:
    """The run's model."""
    return Source.given(config.model, config)


def open_model(source: Source, data: Artifact, runtime: RunConfig, *, dtype: str) -> LogpsModel:
    """Load a model that scores, behind the log-prob engine."""
    return LogpsModel(_load(source, data, runtime, dtype=dtype, seed=source.seed), kernel=_kernel(runtime))


def open_scorer(source: Source, data: Artifact, runtime: RunConfig, *, dtype: str) -> RewardModel:
    """Load a reward model that scores; ConfigError where it has no trained head of one output."""
    return RewardModel(_load(source, data, runtime, dtype=dtype, head="score"))


def open_trained(
    source: Source,
    data: Artifact,
    runtime: RunConfig,
    *,
    needs: frozenset[Need],
    dtype: str,
    lora: LoraConfig,
    seed: int,
) -> PackedModel:
    """Load a model to train, with what its method needs of a model.

    The reference of `ref_kl` is the model that the training starts from: a second copy, or (LoRA) the adapter off.

    Args:
        source: the model that the training starts from.
        data: whose tokenizer the model must fit.
        runtime: the run's settings, for those that change no result.
        needs: of the method; `reward_head` and `ref_kl` decide the kind of model.
        dtype: of weights and computation.
        lora: adapters; r = 0: none.
        seed: of what is added to the model's weights, and of a configuration's.

    Returns:
        A RewardModel, a ReferencedModel or a LogpsModel; the last two give entropies too.
    """
    options: dict[str, Any] = {"dtype": dtype, "seed": seed, "trained": True, "lora": lora if lora.r > 0 else None}
    model: PackedModel
    if "reward_head" in needs:
        options |= {"head": "reward", "pad_token_id": _padding(data)}
        model = RewardModel(_load(source, data, runtime, **options))
    elif "ref_kl" in needs:
        bare = _load(source, data, runtime, **options)
        frozen = None if is_lora(bare) else open_model(source, data, runtime, dtype=dtype)
        model = ReferencedModel(bare, frozen, entropy=True)
    else:
        model = LogpsModel(_load(source, data, runtime, **options), entropy=True, kernel=_kernel(runtime))
    if runtime.compile == "on":
        logger.info("compile: %d norms and feed-forward blocks, at their first use", compile_layers(model))
    return model


def packing_for(model: PackedModel, data: Artifact, runtime: RunConfig) -> dict[str, Any]:
    """How a packer lays documents out for a model: its options `layout` and `whole`.

    A model that is not packed computes a shared prompt before each response anyway: it stands there, so that the
    budget of tokens counts it. A model whose positions depend on a document's length reads documents beyond that length
    whole and each with a prompt of its own.
    """
    longest, alike = int(data.manifest["longest"]), longest_alike(model)
    if alike is None or longest <= alike:
        return {"layout": "separate" if is_unpacked(model.causal) else runtime.layout, "whole": False}
    if runtime.layout == "shared":
        logger.info(
            "layout: separate, because %s reads documents of more than %d tokens with other frequencies of their "
            "positions than shorter ones, and the longest has %d", type(model.causal).__name__, alike, longest,
        )  # fmt: skip
    return {"layout": "separate", "whole": True}


def _kernel(runtime: RunConfig) -> Kernel:
    check_kernel(runtime.head_kernel)
    return runtime.head_kernel


def _padding(data: Artifact) -> int | None:
    """The tokenizer's padding token, where no response ends with it; else None: padded texts cannot be scored."""
    names, ids = _special_tokens(data)
    padding = ids.get("pad_token")
    if names["pad_token"] == names["eos_token"] or padding in _last_tokens(data):
        logger.info("the tokenizer pads with a token that ends responses: transformers will score one text at a time")
        return None
    return padding


def _last_tokens(data: Artifact) -> set[int]:
    """The tokens that end responses."""
    found: set[int] = set()
    for _, store in open_splits(data):
        lists = [chunk for chunk in store.table["ids"].chunks if len(chunk)]
        ends = [chunk.values.to_numpy()[chunk.offsets.to_numpy()[1:] - 1] for chunk in lists]
        found.update(np.unique(np.concatenate(ends)[store.segments > 0]).tolist())
    return found


def _load(source: Source, data: Artifact, runtime: RunConfig, *, trained: bool = False, **options: Any) -> Any:
    model = load_model(
        source.path,
        trust_remote_code=runtime.trust_remote_code,
        gradient_checkpointing=trained and runtime.gradient_checkpointing,
        attention=runtime.attention,
        load_in_4bit=source.in_4bit,
        vocab_size=int(data.manifest["vocab_size"]),
        **options,
    )
    _check_context(model.config, source.path, data.manifest)
    if trained:
        _align_eos(causal_lm(model), source.path, data)
    return model


def _align_eos(model: Any, path: str, data: Artifact) -> None:
    """Give a bare configuration the tokenizer's special ids; warn of a checkpoint that ends with other tokens."""
    names, ids = _special_tokens(data)
    end = ids["eos_token"]
    configs = [model.config, getattr(model, "source_config", model.config)]
    if getattr(model, "generation_config", None) is not None:
        configs.append(model.generation_config)
    own = [config.eos_token_id for config in configs if config.eos_token_id is not None]
    if is_bare(path):
        for config in configs:
            config.eos_token_id, config.bos_token_id = end, ids.get("bos_token")
    elif own and not any(end in (ends if isinstance(ends, list) else [ends]) for ends in own):
        logger.warning(
            "%s ends texts with token %s (eos_token_id), the tokenizer with %d (%s); the policy's config.json keeps "
            "the model's: generation with it may not end",
            path, own[0], end, names["eos_token"],
        )  # fmt: skip


def _special_tokens(data: Artifact) -> tuple[dict[str, str], dict[str, int]]:
    """Texts and ids of the policy's special tokens, by their roles: eos_token and so on."""
    from tokenizers import Tokenizer

    directory = data.directory / "tokenizer"
    named = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    names = {role: text for role, text in named.items() if role.endswith("_token") and isinstance(text, str)}
    ids = {role: tokenizer.token_to_id(text) for role, text in names.items()}
    return names, {role: index for role, index in ids.items() if index is not None}


def _check_context(model: Any, path: str, manifest: Mapping[str, Any]) -> None:
    """ConfigError where a prompt with its response is longer than what the model was made for."""
    context, longest = getattr(model, "max_position_embeddings", None), int(manifest["longest"])
    if context is None or longest <= context:
        return
    if "longest_row" in manifest:  # tokens of its own, which no setting of the run bounds
        raise ConfigError(
            f"{path} reads at most {context} tokens (max_position_embeddings), and {manifest['longest_row']} has "
            f"{longest} of its tokens; lower max_tokens, which cuts the text for both, or drop that row"
        )
    setting = manifest.get("length_setting", "max_tokens")  # what bounds these tokens
    below = ", and max_prompt_tokens below it" if setting == "max_tokens" else ""
    raise ConfigError(
        f"{setting} must be at most {context}, the context of {path} (max_position_embeddings), where the longest "
        f"prompt and response have {longest} tokens; set {setting} to {context}{below}"
    )


def check_vocabulary(setting: str, model: str, data: Artifact) -> None:
    """Check that a model which is trained further, or starts a training, reads the same token ids as the policy.

    Args:
        setting: names the model in the error, such as base.path.
        model: directory or hub name.
        data: whose tokenizer is the policy's.

    Raises:
        ConfigError: its tokenizer gives a token another id (first difference named).
    """
    difference = vocabulary_difference(model, tokenizer_json(data))
    if difference is not None:
        raise ConfigError(
            f"{setting} must be a model with the policy's vocabulary, got {model}: {difference}; give a model of the "
            "same tokenizer"
        )


def tokenizer_json(data: Artifact) -> bytes:
    """The content of the policy's tokenizer.json."""
    return (data.directory / "tokenizer" / "tokenizer.json").read_bytes()


def vocabulary_difference(model: str, tokenizer: bytes) -> str | None:
    """The first token that the tokenizer of `model` gives another id than this one; None where ids are the same.

    Args:
        model: directory or hub name.
        tokenizer: a tokenizer.json that can be read.

    Raises:
        ConfigError: the model's tokenizer has no tokenizer.json, so that its ids cannot be compared.
    """
    folder = resolve(model)
    path = folder / "tokenizer.json"
    if not path.exists():
        slow = [name for name in SLOW_TOKENIZERS if (folder / name).exists()]
        if slow:
            raise ConfigError(
                f"{model} has {slow[0]} and no tokenizer.json; save its tokenizer as a fast one there: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            )
        logger.info("%s has no tokenizer.json; it is taken to read the policy's token ids", model)
        return None  # a bare checkpoint: its number of embeddings is checked when it is loaded
    from pyprefopt.data.tokenization.tokenizer_files import read_tokenizer

    content = read_tokenizer(folder)
    if content == tokenizer:
        return None
    ours, theirs = _vocabulary(Path("tokenizer.json"), tokenizer), _vocabulary(path, content)
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index:
            return f"token {token!r} is {theirs.get(token, 'absent')} there and {index} here"
    return None


def _vocabulary(path: Path, content: bytes) -> Mapping[str, int]:
    """Token -> id, over the model's vocabulary and the added tokens. ConfigError for what is no tokenizer.json."""
    from tokenizers import Tokenizer

    from pyprefopt.data.tokenization.tokenizer import open_native

    open_native(path, content)  # says what is wrong with it
    return dict(Tokenizer.from_str(content.decode()).get_vocab(with_added_tokens=True))
