"""Opens what generates: a policy and its reference, with the tokenizer and the tokens that end a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyprefopt.data.tokenization.tokenizer import GivenTokenizer, Tokenizer, as_tokenizer
from pyprefopt.errors import ConfigError, check
from pyprefopt.generation.cached_model import CachedModel
from pyprefopt.modeling.checkpoints.adapters import adapters_off, is_lora, load_adapter
from pyprefopt.modeling.checkpoints.load import load_model
from pyprefopt.modeling.checkpoints.source import find_adapter
from pyprefopt.modeling.packed_model import causal_lm
from pyprefopt.modeling.rotary import longest_alike

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Models:
    """Models of one vocabulary."""

    policy: CachedModel
    ref: CachedModel | None
    tokenizer: Tokenizer
    end_ids: frozenset[int]  # tokens that end a text: the tokenizer's, and those of the policy's configuration
    context: int | None  # the most tokens that all of them read


def open_models(
    policy: str | Path | nn.Module,
    ref: str | Path | nn.Module | None = None,
    *,
    tokenizer: GivenTokenizer | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Models:
    """Open a policy and its reference.

    Args:
        policy: a directory, a hub name, or a model of `load_model` (with LoRA its reference is the policy without its
            adapter, where `ref` is None). Or the folder of an adapter, which is put on `ref`: one model serves both.
        ref: the same of the reference; None: no reference.
        tokenizer: None: the policy's own.
        dtype: of models that are loaded here.
        trust_remote_code: whether code that comes with a model may run.
        device: where the models go.
        seed: of the weights of a model that is a config.json.

    Returns:
        The models, ready for `sample_batch`.

    Raises:
        ConfigError: a model that is not there, no tokenizer, or vocabularies of different sizes.
    """
    adapter = find_adapter(policy) if isinstance(policy, str | Path) else None
    if adapter is not None:
        check(ref is not None, "ref", None, "the model that the adapter was trained on", f"{adapter} is an adapter")
    if tokenizer is None:
        brings = policy if adapter is None else ref
        check(isinstance(brings, str | Path), "tokenizer", None, "given with a model that is open", "pass tokenizer=…")
        tokenizer = str(brings)
    opened = as_tokenizer(tokenizer)
    options: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "vocab_size": opened.vocab_size,
        "seed": seed,
    }

    def load(model: str | Path | nn.Module) -> nn.Module:
        found = load_model(model, attention="unpacked", **options) if isinstance(model, str | Path) else model
        return found.eval().to(device)

    ours = load(policy) if adapter is None else load_adapter(load(ref), adapter)  # type: ignore[arg-type]
    if ref is None or adapter is not None:
        theirs = CachedModel(causal_lm(ours), lambda: adapters_off(ours)) if is_lora(ours) else None
    else:
        theirs = CachedModel(causal_lm(load(ref)))
    own = CachedModel(causal_lm(ours))
    sizes = [model.vocabulary for model in (own, theirs) if model is not None]
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"policy and ref must have one vocabulary, got {sizes[0]:,} and {sizes[1]:,} rows of their heads; decoders "
            "of two models compare them token by token"
        )
    contexts = [_context(model.model) for model in (own, theirs) if model is not None]
    known = [context for context in contexts if context is not None]
    return Models(own, theirs, opened, _end_ids(own.model, opened), min(known, default=None))


def _end_ids(model: nn.Module, tokenizer: Tokenizer) -> frozenset[int]:
    configs = (model.config, getattr(model, "generation_config", None))
    return join_ends(tokenizer.eos_token_id, *(getattr(config, "eos_token_id", None) for config in configs))


def join_ends(*ends: int | Sequence[int] | None) -> frozenset[int]:
    """All end tokens, of which configurations name one, several or none."""
    found: set[int] = set()
    for own in ends:
        found |= {*own} if isinstance(own, Sequence) else set() if own is None else {own}
    return frozenset(map(int, found))


def _context(model: Any) -> int | None:
    """The most tokens that a model reads, and of which each is read as in every shorter text."""
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None), longest_alike(model)]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)
