"""Which model a stage starts from, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.hub import resolve
from pyprefopt.errors import ConfigError
from pyprefopt.modeling.load import load_model, model_hash
from pyprefopt.modeling.logps import LogpsModel
from pyprefopt.stages.artifact import Artifact, content_hash
from pyprefopt.train.config import RunConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Source:
    """A model's weights: where they are, and the hash of what they are."""

    path: str
    fingerprint: str

    @classmethod
    def given(cls, path: str, config: RunConfig) -> Source:
        """A user's directory, hub name or config.json (whose random weights follow from the seed)."""
        content = model_hash(path, trust_remote_code=config.trust_remote_code)
        return cls(path, content_hash([content, config.seed]) if path.endswith(".json") else content)


def start_model(config: RunConfig, data: Artifact) -> Source:
    """`--model`, or the embedded tiny model, whose config the data stage wrote."""
    return Source.given(config.model or str(data.directory / "model" / "config.json"), config)


def open_model(config: RunConfig, source: Source, data: Artifact, *, dtype: str, trained: bool) -> LogpsModel:
    """Load a model behind the log-prob engine; LoRA and checkpointing only where it is to be trained."""
    model = load_model(
        source.path,
        dtype=dtype,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
        gradient_checkpointing=trained and config.gradient_checkpointing,
        lora=config.lora if trained and config.lora.r > 0 else None,
        vocab_size=int(data.manifest["vocab_size"]),
    )
    _check_context(model.config, source.path, data.manifest)
    return LogpsModel(model)


def _check_context(model: Any, path: str, manifest: Mapping[str, Any]) -> None:
    """ConfigError where a prompt with its response is longer than what the model was made for."""
    context, longest = getattr(model, "max_position_embeddings", None), int(manifest["longest"])
    setting = manifest.get("length_setting", "max_tokens")  # what bounds these tokens
    if context is not None and longest > context:
        below = ", and --max_prompt_tokens below it" if setting == "max_tokens" else ""
        raise ConfigError(
            f"{setting} must be at most {context}, the context of {path} (max_position_embeddings), where the longest "
            f"prompt and response have {longest} tokens; set --{setting} {context}{below}"
        )


def check_vocabulary(setting: str, model: str, data: Artifact) -> None:
    """A base or oracle from outside (`setting`: base.path or oracle.path) must read the same token ids as the policy.

    Raises:
        ConfigError: its tokenizer gives a token another id (first difference named).
    """
    path = resolve(model) / "tokenizer.json"
    if not path.exists():
        return  # a bare checkpoint: its number of embeddings is checked when it is loaded
    ours, theirs = _vocabulary(data.directory / "tokenizer" / "tokenizer.json"), _vocabulary(path)
    for token, index in ours.items():
        if theirs.get(token) != index:
            raise ConfigError(
                f"{setting} must be a model with the policy's vocabulary, got {model}: token {token!r} is "
                f"{theirs.get(token, 'absent')} there and {index} here; give a model of the same tokenizer"
            )


def _vocabulary(path: Path) -> Mapping[str, int]:
    """Token -> id, over the model's vocabulary and the added tokens."""
    from tokenizers import Tokenizer

    return dict(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True))


__all__ = ["Source", "check_vocabulary", "open_model", "start_model"]
