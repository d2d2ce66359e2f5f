"""A saved model as its users will load it, through transformers and PEFT, compared with the one that was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel

from pyprefopt.modeling.checkpoints.adapters import base_name, is_adapter
from pyprefopt.modeling.checkpoints.noise import quiet
from pyprefopt.modeling.checkpoints.quantized import QuantizedLinear, dense_weights
from pyprefopt.modeling.checkpoints.weights import stored_tensors
from pyprefopt.modeling.packed_model import plain_attention
from pyprefopt.modeling.proof import TOLERANCE
from pyprefopt.modeling.tiny_copy import parts_of

if TYPE_CHECKING:
    from peft import PeftModel

MOST_BYTES = 2 * 2**30  # of weights that are loaded a second time, with their numbers
DOCUMENTS, TOKENS = 4, 256  # that are compared: documents, and tokens of each
_MADE_UP = 24  # tokens of a made-up document

Document = Sequence[int]  # token ids


class _Models(Protocol):
    @staticmethod
    def from_pretrained(path: Path, **options: Any) -> Any: ...


def find_difference(
    model: nn.Module,
    directory: Path,
    weights: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    documents: Sequence[Document] = (),
) -> str | None:
    """What transformers and PEFT make otherwise of a model that was saved; None: nothing.

    Names, shapes and precision are always compared. Where the weights take at most 2 GiB, so is every number of them,
    and what both models compute for a few documents.

    Args:
        model: the one that was saved, below its wrapper; with PEFT's where it has LoRA.
        directory: where it was saved.
        weights: the model's own, by its names.
        merged: the weights that were written: `weights` with LoRA merged, by the plain model's names.
        documents: token ids; made-up ones where there are none.
    """
    causal: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    real = sum(tensor.numel() * tensor.element_size() for tensor in merged.values()) <= MOST_BYTES
    long = [document for document in documents if len(document) > 1]  # a first token has no log-prob
    chosen = [list(document[:TOKENS]) for document in long[:DOCUMENTS]] or [_made_up(causal)]
    try:
        return _generation_difference(causal, directory) or _model_difference(
            model, causal, directory, weights, merged, chosen if real else []
        )
    except _NotLoadedError as error:
        return str(error)


class _NotLoadedError(Exception):
    """A library refuses what it is to load."""


@contextmanager
def _naming(reader: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any kind: it reads many files
        said = " ".join(str(error).split())[:200]
        raise _NotLoadedError(f"{reader} cannot load {what} ({type(error).__name__}: {said})") from error


def _generation_difference(causal: PreTrainedModel, directory: Path) -> str | None:
    """What GenerationConfig reads otherwise than the model has it."""
    own = getattr(causal, "generation_config", None)
    if own is None:
        return None
    with _naming("GenerationConfig", "generation_config.json"):
        read = GenerationConfig.from_pretrained(directory, local_files_only=True)
    ours, theirs = (_settings(config) for config in (own, read))
    for name in sorted(ours | theirs):
        if ours.get(name) != theirs.get(name):
            return f"GenerationConfig reads {name} as {theirs.get(name)!r} instead of {ours.get(name)!r}"
    return None


def _settings(config: GenerationConfig) -> dict[str, Any]:
    notes = ("transformers_version", "_from_model_config")
    return {name: value for name, value in config.to_diff_dict().items() if name not in notes and value is not None}


def _model_difference(
    model: nn.Module,
    causal: PreTrainedModel,
    directory: Path,
    weights: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    documents: Sequence[Document],
) -> str | None:
    """What the Auto class and PEFT make otherwise; without documents no number of them is read."""
    auto: _Models = AutoModelForSequenceClassification if _has_score(causal) else AutoModelForCausalLM
    name = auto.__name__  # type: ignore[attr-defined]
    with quiet(), _naming(name, "it"):
        loaded, info = auto.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, output_loading_info=True,
            trust_remote_code=causal.is_remote_code(), ignore_mismatched_sizes=True,
            **({} if documents else {"device_map": {"": "meta"}}),
        )  # fmt: skip
    tied = set(getattr(causal, "all_tied_weights_keys", None) or ())
    twice = sorted(tied & set(stored_tensors(directory)))
    found = _names_difference(info, twice) or _tensor_difference(loaded.state_dict(), merged)
    if found is not None:
        return f"{name} {found}"
    expected = _own_outputs(model, causal, weights, documents) if _is_whole(model) else _outputs(loaded, documents)
    if (off := _outputs_difference(loaded, expected, documents)) is not None:
        return f"{name} computes {off}"
    if model is causal:
        return None
    if documents:
        loaded.load_state_dict(_base_weights(model, weights), strict=False)  # tied ones are there once
    peft, wrong = _adapted(loaded, directory / "adapter")
    if wrong:
        return f"PeftModel misses or does not use {len(wrong)} weights of the adapter (first: {wrong[0]})"
    if (found := _tensor_difference(_adapter(peft.state_dict()), _adapter(weights))) is not None:
        return f"PeftModel {found}"
    off = _outputs_difference(peft, expected, documents)
    return None if off is None else f"PeftModel computes {off}"


def _names_difference(info: Mapping[str, Any], twice: list[str]) -> str | None:
    """Weights that transformers misses, does not use, or finds in another shape; or that are stored twice."""
    shapes = [name for name, *_ in sorted(info["mismatched_keys"])]
    kinds = {
        "misses": sorted(info["missing_keys"]), "does not use": sorted(info["unexpected_keys"]),
        "finds in other shapes than config.json says": shapes, "finds beside the ones that they are tied to": twice,
    }  # fmt: skip
    return next(
        (f"{what} {len(names)} of its weights (first: {names[0]})" for what, names in kinds.items() if names), None
    )


def _tensor_difference(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str | None:
    """The first of `ours` that is not among `theirs`, or there of other numbers, or too coarse for ours."""
    for name, tensor in ours.items():
        read = theirs.get(name)
        if read is None:
            return f"has no weight {name}"
        if read.shape != tensor.shape:
            return f"reads {name} as {list(read.shape)} instead of {list(tensor.shape)}"
        if torch.promote_types(read.dtype, tensor.dtype) != read.dtype:
            return f"reads {name} as {read.dtype} instead of {tensor.dtype}"
        if not read.is_meta and not torch.equal(read, tensor.detach().to(read.device, read.dtype)):
            return f"reads other numbers in {name}"
    return None


def _adapted(base: PreTrainedModel, adapter: Path) -> tuple[PeftModel, list[str]]:
    """The model with the adapter from its folder, and the adapter's weights that PEFT misses or does not use."""
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():  # PEFT would look for a pickle, and on the hub
        raise _NotLoadedError("PeftModel finds no adapter_model.safetensors")
    options: dict[str, Any] = {"autocast_adapter_dtype": False, "torch_device": "cpu"}
    with quiet(), _naming("PeftModel", "adapter/"):
        peft = PeftModel.from_pretrained(base, str(adapter), use_safetensors=True, **options)
        result = peft.load_adapter(str(adapter), "default", **options)
    return peft, sorted({*result.missing_keys, *result.unexpected_keys})


def _adapter(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's weights alone."""
    return {name: tensor for name, tensor in weights.items() if is_adapter(name)}


def _base_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the adapter, by the plain model's names."""
    named = {base_name(name): tensor for name, tensor in dense_weights(model, dict(weights)).items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


class _Alone(nn.Module):
    """A model that reads one document: log-probs of its tokens, or its score.

    The score is read at the last token, wherever transformers looks for it.
    """

    def __init__(self, causal: nn.Module, *, reward: bool) -> None:
        super().__init__()
        self.causal, self.reward = causal, reward

    def forward(self, ids: Tensor) -> Tensor:
        """[tokens - 1] log-probs, or [1] score."""
        options = {"input_ids": ids[None], "use_cache": False, "return_dict": True}
        if self.reward:
            hidden = self.causal.base_model(**options).last_hidden_state[0]  # type: ignore[operator]
            score: Tensor = self.causal.score(hidden[-1:])[0]  # type: ignore[operator]
            return score
        return _token_logps(self.causal(**options).logits[0], ids)


def _token_logps(logits: Tensor, ids: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits[:-1], dim=-1).gather(1, ids[1:, None])[:, 0]


@torch.no_grad()
def _own_outputs(
    model: nn.Module, causal: PreTrainedModel, weights: Mapping[str, Tensor], documents: Sequence[Document]
) -> list[Tensor]:
    """What the run's model computes with `weights`, whatever has become of its own."""
    packed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    prefix = "" if model is causal else "base_model.model."
    given = {
        f"causal.{name.removeprefix(prefix)}": weights[name].to(causal.device)
        for name, _ in model.named_parameters()
        if name in weights and name not in packed
    }
    alone = _Alone(causal, reward=_has_score(causal))
    with plain_attention(causal), torch.compiler.set_stance("force_eager"):
        ids = [torch.tensor(document, device=causal.device) for document in documents]
        return [torch.func.functional_call(alone, given, (one,)) for one in ids]


def _is_whole(model: nn.Module) -> bool:
    """Whether the model can compute on its own; ZeRO-3 takes weights apart. Then what was loaded has the numbers."""
    return not any(hasattr(parameter, "ds_status") for parameter in model.parameters())


@torch.no_grad()
def _outputs(loaded: nn.Module, documents: Sequence[Document], device: torch.device | None = None) -> list[Tensor]:
    """What a loaded model gives its users: log-probs, or a score."""
    ids = [torch.tensor(document, device=device) for document in documents]
    for part in parts_of(loaded.config):
        part.return_dict = True  # whatever its users like better: transformers needs it within a model
    logits = [loaded.to(device)(input_ids=one[None], use_cache=False).logits[0] for one in ids]
    return [part if part.ndim == 1 else _token_logps(part, one) for part, one in zip(logits, ids, strict=True)]


@torch.no_grad()
def _outputs_difference(loaded: nn.Module, expected: Sequence[Tensor], documents: Sequence[Document]) -> str | None:
    """By how much the loaded model's log-probs or scores are off; None where that is rounding."""
    if not documents:
        return None
    dtype = next(loaded.parameters()).dtype
    for ours, theirs in zip(expected, _outputs(loaded, documents, expected[0].device), strict=True):
        off = (theirs.to(ours.dtype) - ours).abs().mean().item()
        tolerance = TOLERANCE[dtype] * max(1.0, ours.abs().mean().item())
        if not off <= tolerance:
            what = "a score" if len(ours) == 1 else "log-probs"
            return f"{what} off by {off:.3g} (at most {tolerance:.3g})"
    return None


def _has_score(causal: PreTrainedModel) -> bool:
    """Whether it is a reward model, which has no language model head."""
    return causal.get_output_embeddings() is None


def _made_up(causal: PreTrainedModel) -> list[int]:
    size = causal.config.get_text_config().vocab_size
    return [1 + number * 7919 % (size - 1) for number in range(_MADE_UP)]
