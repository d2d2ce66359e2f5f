"""The proof of how an architecture reads packs: in a tiny copy of it a document must come out beside others as alone.

What an architecture can do is seen from what it computes, not from its name. Alone, the documents run as transformers
runs them, in a pack as the engine does, both layouts at once, and beside a document at the end of the context. Where
that differs, the pack's documents are tried in transformers' own forward, padded on the right. What has been proved is
remembered in the user's cache.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.attention.backends import PLAIN, UNPACKED
from pyprefopt.modeling.attention.layout import Pack
from pyprefopt.modeling.attention.packed import ATTENTION_NAME, LAYER_TYPES, REMEDY, WAY_SETTING
from pyprefopt.modeling.packed_model import body, is_unpacked, plain_attention, run_pack
from pyprefopt.modeling.rotary import give_documents_their_own, longest_alike
from pyprefopt.modeling.steady import find_unsteady
from pyprefopt.modeling.tiny_copy import TEXT, tiny_config
from pyprefopt.storage.files import write_json

logger = logging.getLogger(__name__)

Build = Callable[[PreTrainedConfig], PreTrainedModel]  # a model of random weights, with the config's attention

# Largest mean difference by the model's dtype: of hidden states, relative to their size, and of log-probs, in nats.
# Documents that see each other, and a head transform that is left out, are off by 0.1 or more, bfloat16 by about 0.02.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}
_LARGEST = TOLERANCE[torch.float32]
_REMEDY = "use a model of another architecture, as docs/families.md says"
_PROMPT, _FIRST, _SECOND = 6, 7, 8  # tokens of a prompt with two responses, beside a document of TEXT
_BESIDE = 520  # tokens of the document at the end of the context


class Proof(NamedTuple):
    """What has been seen of an architecture."""

    unpacked: str | None  # why its documents go through transformers' own forward; None: they are packed
    unsteady: frozenset[str] | None  # classes that `keep_in_evaluation` is to hold, random in training; None: not seen
    attention: str | None = ATTENTION_NAME  # the name of transformers' attention; None: it chooses


def prove(config: PreTrainedConfig, build: Build) -> Proof:
    """Prove how a model with this config reads packs, or find that proof in the cache.

    The config names the wanted way: `auto` asks for packed attention, and for each document in transformers' own
    forward where that gives other numbers or cannot be tried, because no tiny copy runs in transformers itself: then
    the model's own weights decide. No generator is disturbed.

    Raises:
        ConfigError: it cannot be run in the wanted way.
    """
    wanted = getattr(config, WAY_SETTING)
    if wanted == UNPACKED:
        return _prove_unpacked(config, build, "as asked")
    try:
        unsteady, reason = _prove(config, build, PLAIN, ATTENTION_NAME), "no tiny copy of it runs to prove packing in"
    except ConfigError as error:
        if wanted != "auto":
            raise
        unsteady, reason = None, str(error).removesuffix(f"; {REMEDY}")
    if unsteady is None and wanted == "auto":
        return _prove_unpacked(config, build, reason)
    return Proof(None, unsteady)


def _prove_unpacked(config: PreTrainedConfig, build: Build, reason: str) -> Proof:
    """With the attention that transformers chooses; with its plain one where that does not compute the same."""
    try:
        return Proof(reason, _prove(config, build, UNPACKED, None), None)
    except ConfigError:
        return Proof(reason, _prove(config, build, UNPACKED, "eager"), "eager")


def _prove(config: PreTrainedConfig, build: Build, way: str, attention: str | None) -> frozenset[str] | None:
    """The classes of layers that are random in training; None: no tiny copy runs."""
    with torch.random.fork_rng(devices=[]):
        try:
            tiny = tiny_config(config, way)
            file = proof_file(tiny, str(attention))
            if file is not None and (known := _remembered(file)) is not None:
                return known
            model = _random_model(build, tiny, "eager")
            expected = states_alone(model)
        except ConfigError:
            raise
        except Exception as error:  # whatever an architecture raises for sizes that it does not expect
            logger.info(
                "model_type %r: no tiny copy of it runs (%s); what it computes is seen on its weights alone",
                config.model_type, _first_line(error),
            )  # fmt: skip
            return None
        if way == UNPACKED:
            unsteady = _compare_unpacked(_random_model(build, tiny, attention), model, expected)
        else:
            unsteady = _compare(model, expected, build, tiny)
    if file is not None:
        remember(file, architecture=type(model).__name__, kept_in_evaluation=sorted(unsteady))
    return unsteady


def states_alone(model: PreTrainedModel) -> Tensor:
    """Last hidden states of the made-up documents, each run on its own, one after another."""
    text, prompt, first, second = _tokens(model)
    documents = (text, torch.cat([prompt, first]), torch.cat([prompt, second]))
    with torch.no_grad():
        outputs = [body(model)(input_ids=ids[None], use_cache=False, return_dict=True) for ids in documents]
    if not all(hasattr(output, "last_hidden_state") for output in outputs):
        raise ConfigError(
            f"{type(model).__name__} has a base model that gives no last hidden states, which packed batches are scored"
            f" by; {_REMEDY}"
        )
    return torch.cat([output.last_hidden_state[0] for output in outputs])


def states_packed(model: PreTrainedModel, pack: Pack | None = None) -> Tensor:
    """Last hidden states of `sample_pack`, or of another pack."""
    with torch.no_grad():
        return run_pack(body(model), sample_pack(model) if pack is None else pack)


def packing_differences(packed: Tensor, alone: Tensor) -> dict[str, float]:
    """Mean difference of `states_packed` from `states_alone`, relative to their mean size, by layout."""
    whole = TEXT + _PROMPT + _FIRST  # documents behind one another; what follows sees a prompt that stands elsewhere
    pairs = {"separate": (packed[:whole], alone[:whole]), "shared": (packed[whole:], alone[whole + _PROMPT :])}
    return {layout: _difference(*states) for layout, states in pairs.items()}


def sample_pack(model: PreTrainedModel) -> Pack:
    """A made-up pack of a document and of a prompt with two responses, the second not right behind its prompt."""
    tokens = torch.cat(_tokens(model))
    counts = torch.tensor([TEXT, _PROMPT, _FIRST, _SECOND])
    starts = torch.tensor([0, 0, _PROMPT, _PROMPT])  # of a segment, in its document
    positions = torch.cat([torch.arange(int(n)) + start for n, start in zip(counts, starts, strict=True)])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Pack(tokens, positions.to(tokens.device), offsets, torch.tensor([-1, -1, 1, 1]))


def _tokens(model: PreTrainedModel) -> tuple[Tensor, ...]:
    """The made-up documents' parts; the same ones every time, without id 0, which tiny copies pad with."""
    weight = model.get_input_embeddings().weight
    known = min(weight.shape[0], getattr(model.config.get_text_config(), "vocab_size", weight.shape[0]))
    tokens = 1 + torch.arange(TEXT + _PROMPT + _FIRST + _SECOND, device=weight.device) * 7919 % (known - 1)
    return torch.split(tokens, [TEXT, _PROMPT, _FIRST, _SECOND])


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().mean() / theirs.abs().mean()).item()


def _compare(model: PreTrainedModel, expected: Tensor, build: Build, tiny: PreTrainedConfig) -> frozenset[str]:
    """The layers that are random in training; ConfigError unless packed documents come out as `expected`."""
    name = type(model).__name__
    kinds = sorted(set(getattr(tiny.get_text_config(), "layer_types", None) or ()) - LAYER_TYPES)
    try:
        packed = _random_model(build, tiny, ATTENTION_NAME)
        packed.load_state_dict(model.state_dict())
        give_documents_their_own(packed)
        states = states_packed(packed)
        aware = _difference(states_packed(packed, _as_one_document(sample_pack(packed))), states) > _LARGEST
    except ConfigError:
        raise
    except Exception as error:  # what runs alone, and not in a pack
        raise ConfigError(_without_attention(name, _first_line(error))) from error
    off = {layout: value for layout, value in packing_differences(states, expected).items() if not value <= _LARGEST}
    if kinds and (off or not _shows(kinds, expected, build, tiny)):
        raise ConfigError(
            f"model_type {tiny.model_type!r} has layers of type {kinds}, which packed batches do not support; {REMEDY}"
        )
    if off and not aware:
        raise ConfigError(_without_attention(name, "documents in a pack see each other"))
    if off:
        refuse(packed, off, "a tiny copy with random weights")
    _check_far(packed, expected, name)
    return steady_layers(packed)


def _compare_unpacked(own: PreTrainedModel, model: PreTrainedModel, expected: Tensor) -> frozenset[str]:
    """The same as `_compare`, with each document in transformers' own forward."""
    own.load_state_dict(model.state_dict())
    give_documents_their_own(own)
    with refuse_what_fails(own):
        states = states_packed(own)
    off = {layout: value for layout, value in packing_differences(states, expected).items() if not value <= _LARGEST}
    if off or not _is_causal(own):
        refuse(own, off or {"separate": 1.0}, "a tiny copy with random weights")
    return steady_layers(own)


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Whether the beginnings of a long document come out as in the whole of it.

    It is as long as documents may be that stand in one call: where their lengths decide the positions' frequencies, as
    those that all get the same.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _BESIDE
    count = min(_BESIDE, context, longest_alike(model) or _BESIDE)
    tokens = torch.cat(_tokens(model)).repeat(_BESIDE)[:count]

    def run(length: int) -> Tensor:
        states: Tensor = body(model)(input_ids=tokens[None, :length], use_cache=False, return_dict=True)[0][0]
        return states

    whole = run(count)
    lengths = [length for length in (*range(1, TEXT), 2 * TEXT, 3 * TEXT, count // 2) if length < count]
    return all(_difference(run(length), whole[:length]) <= _LARGEST for length in lengths)


def steady_layers(model: PreTrainedModel) -> frozenset[str]:
    """The classes of layers that must stay in evaluation for a pack to give the same numbers in training.

    Raises:
        ConfigError: two runs in evaluation differ already.
    """
    with plain_attention(model), refuse_what_fails(model):
        unsteady = find_unsteady(model, lambda: run_pack(body(model), sample_pack(model)))
    if unsteady is None:
        raise ConfigError(
            f"{type(model).__name__} computes other numbers each time, in evaluation too, so that it differs from its "
            f"own reference; {_REMEDY}"
        )
    return unsteady


def _check_far(model: PreTrainedModel, expected: Tensor, name: str) -> None:
    """ConfigError where a document comes out otherwise beside one that stands at the end of the context."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int) or context <= 2 * TEXT:
        return
    beside = min(context, _BESIDE)
    tokens = _tokens(model)[0]
    pack = Pack(
        torch.cat([tokens, tokens.repeat(beside)[:beside]]),
        torch.cat([torch.arange(TEXT), torch.arange(context - beside, context)]),
        torch.tensor([0, TEXT, TEXT + beside]), torch.tensor([-1, -1]),
    )  # fmt: skip
    try:
        off = _difference(states_packed(model, pack)[:TEXT], expected[:TEXT])
        remembered = _difference(states_packed(model)[:TEXT], expected[:TEXT])
    except Exception as error:  # positions that its tables do not have
        logger.debug("%s does not run at position %d: %s", name, context - 1, _first_line(error))
        return
    if not off <= _LARGEST:
        raise ConfigError(
            f"{name} cannot be packed: beside a document that ends at position {context - 1} a short one comes out "
            f"otherwise than alone (its hidden states differ by {off:.0%}, in a tiny copy with random weights), "
            f"because something in it follows the longest document of a batch; {REMEDY}"
        )
    if not remembered <= _LARGEST:
        raise ConfigError(
            f"{name} cannot be packed: after a document that ends at position {context - 1} a short one comes out "
            f"otherwise than before (its hidden states differ by {remembered:.0%}, in a tiny copy with random "
            f"weights), because something in it remembers the documents of other batches; {REMEDY}"
        )


@contextmanager
def refuse_what_fails(model: PreTrainedModel) -> Iterator[None]:
    """While inside, whatever transformers raises becomes a ConfigError that names the model's class."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} does not run on a made-up text ({_first_line(error)}); look for numbers of its "
            f"config.json that do not fit together (0 experts, more of them used than there are), or {_REMEDY}"
        ) from error


def refuse(model: PreTrainedModel, off: dict[str, float], where: str) -> NoReturn:
    """Raise the ConfigError for a model that is seen to compute something else in a pack; `off` by layout."""
    name = type(model).__name__
    layouts = " and ".join(f"{value:.0%} in the {layout} layout" for layout, value in off.items())
    if is_unpacked(model):
        raise ConfigError(
            f"{name} is no causal language model: with padding behind it a document comes out otherwise than alone (its"
            f" hidden states differ by {layouts}, in {where}), because a token sees what follows; {_REMEDY}"
        )
    raise ConfigError(
        f"{name} cannot be packed: beside others a document comes out otherwise than alone (its hidden states differ "
        f"by {layouts}, in {where}), because tokens are mixed in another way than by attention, or get their positions "
        f"from elsewhere than position_ids; {REMEDY}"
    )


def _without_attention(name: str, reason: str) -> str:
    return (
        f"{name} ({reason}) does not take another attention; packed batches need an architecture that uses "
        f"transformers' attention interface; {REMEDY}"
    )


def _as_one_document(pack: Pack) -> Pack:
    return pack._replace(segment_offsets=pack.segment_offsets[[0, -1]], segment_parent=pack.segment_parent[:1])


def _shows(kinds: list[str], expected: Tensor, build: Build, tiny: PreTrainedConfig) -> bool:
    """Whether documents as short as these show what layers of these kinds do: full attention gives other numbers."""
    full = copy.deepcopy(tiny)
    text = full.get_text_config()
    text.layer_types = ["full_attention" if kind in kinds else kind for kind in text.layer_types]
    try:
        return _difference(states_alone(_random_model(build, full, "eager")), expected) > _LARGEST
    except Exception:  # its weights do not even have the same shapes
        return True


def _random_model(build: Build, config: PreTrainedConfig, attention: str | None) -> PreTrainedModel:
    """In evaluation mode, with weights so large that every part of the model counts; the same ones every time."""
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    torch.default_generator.manual_seed(0)  # the CPU's generator alone: others are not forked
    return with_large_weights(build(config).eval())


def with_large_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, with random numbers added to its weights, so that every part of it counts."""
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            if parameter.is_floating_point():  # not packed in 4 bits
                parameter.add_(scale * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model


def proof_file(tiny: PreTrainedConfig, *more: str) -> Path | None:
    """Where a proof is remembered; None where the code is not transformers' own, and may change unseen.

    Args:
        tiny: config of the tiny copy.
        more: what else the proof hangs on.
    """
    if not type(tiny).__module__.startswith("transformers.models."):
        return None
    parts = [tiny.to_json_string(use_diff=False), torch.__version__, *more]  # transformers' version is in the first
    parts += [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.rglob("*.py"))]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("PYPREFOPT_CACHE") or f"{home}/pyprefopt") / "proofs" / f"{key[:32]}.json"


def _remembered(file: Path) -> frozenset[str] | None:
    """What `_remember` wrote; None where it is not there, or not whole."""
    try:
        return frozenset(json.loads(file.read_text(encoding="utf-8"))["kept_in_evaluation"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def remember(file: Path, **facts: Any) -> None:
    """Write what has been proved."""
    try:
        write_json(file, facts | {"torch": torch.__version__})
    except OSError as error:  # it is proved again next time
        logger.debug("the proof of %s is not remembered: %s", facts, error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
