"""Samples of many prompts, as a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from pyprefopt.data.reading.frames import CHAT, plain_messages, template_options
from pyprefopt.data.tokenization.render import apply_chat_template
from pyprefopt.errors import ConfigError, DataError, check, check_number, did_you_mean
from pyprefopt.generation.decoders import DECODERS, LEADERS, Decoder
from pyprefopt.generation.models import Models, open_models
from pyprefopt.generation.opening import find_opening
from pyprefopt.generation.prompts import read_prompts
from pyprefopt.generation.sampler import Generated, Sampling, Wanted, batches_by_tokens, sample_batch, wanted_of

if TYPE_CHECKING:
    from torch import nn

    from pyprefopt.data.tokenization.tokenizer import GivenTokenizer, Tokenizer

logger = logging.getLogger("pyprefopt")

SCHEMA: dict[str, Any] = {
    "row": pl.UInt64,  # of the prompt, in the input
    "sample": pl.UInt32,  # its number among the prompt's samples
    "prompt": CHAT,
    "response": pl.String,  # the text of the sample, without its end token; with a <think> that the prompt ends with
    "response_complete": pl.Boolean,  # as `finished`: false, and no end of turn follows where it is trained on
    "messages": CHAT,  # the prompt, and the sample as the assistant's answer
    "ids": pl.List(pl.UInt32),  # of the sample, its end token too
    "finished": pl.Boolean,  # it ended by itself, before max_new_tokens
    "logp_policy": pl.List(pl.Float64),  # nats, of each token under the policy
    "logp_ref": pl.List(pl.Float64),  # under the reference; null without one
    "logp_sampled": pl.List(pl.Float64),  # under what was drawn from: after temperature and top_p
    "kl": pl.List(pl.Float64),  # KL(policy || ref) at each step, over the whole vocabulary; null without a reference
    "kl_sampled": pl.List(pl.Float64),  # KL(what was drawn from || ref), exact
    "led_by": pl.List(pl.Enum(LEADERS)),  # whose distribution a token was drawn from
}


def generate(
    policy: str | Path | nn.Module,
    prompts: Any,
    *,
    ref: str | Path | nn.Module | None = None,
    decode: str | Decoder = "sample",
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    kl: Literal["exact", "monte_carlo"] = "exact",
    kl_samples: int = 1000,
    tokenizer: GivenTokenizer | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    max_tokens_per_batch: int = 16384,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> pl.DataFrame:
    """Generate answers to prompts with a policy, or with a policy and its reference together.

    A sample depends on its prompt, its number and the seed alone (of equal prompts also on which it is), not on the
    prompts beside it.

    Args:
        policy: a directory, a hub name, or a model of `load_model`. Or the folder of a LoRA adapter, which is put on
            `ref`: one model serves both.
        prompts: a list of texts or of chats (lists of {role, content}), or what `read_prompts` takes.
        ref: the reference, of the same vocabulary; needed by decoders of two models. Where it is given, its log-probs
            and the divergence at every step are recorded.
        decode: sample, greedy, or a decoder with its settings: `Mixing(a=0.5)`, `LengthControl(t=10)`,
            `KLThreshold(b=0.5)`.
        samples: of each prompt.
        temperature: the logits that are drawn from are divided by it.
        top_p: tokens are drawn from the most probable ones that together have so much.
        max_new_tokens: of a sample.
        seed: of the random numbers.
        kl: of a step: exact over the whole vocabulary, or the mean log-ratio of tokens drawn of the policy.
        kl_samples: tokens of such an estimate.
        tokenizer: None: the policy's own.
        dtype: float32, bfloat16 or float64, of models that are loaded here.
        device: where they go.
        max_tokens_per_batch: tokens of prompts and samples that are worked on at once; changes no sample.
        trust_remote_code: whether code that comes with a model may run.
        progress: called with the samples that are done, and all.

    Returns:
        A line a sample, of schema SCHEMA, by row and sample; `tools` and `template_kwargs` where prompts have any.

    Raises:
        ConfigError: a setting breaks its rule, a model that is not there, or a prompt that is longer than the context.
        DataError: bad prompts.

    Example:
        >>> table = generate("runs/dpo/policy", ["Hi"], ref="models/base", decode=Mixing(a=0.5))  # doctest: +SKIP
        >>> table["messages"][0][-1]["content"]  # doctest: +SKIP
        'Hello!'
    """
    decoder = as_decoder(decode)
    check_number("samples", samples, whole=True)
    check(samples > 0, "samples", samples, "> 0")
    sampling = Sampling(
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed, kl=kl, kl_samples=kl_samples
    )
    decoder.check_ref(ref)
    given = pl.DataFrame({"prompt": list(prompts)}) if isinstance(prompts, list | tuple) else prompts
    read = read_prompts(given)
    models = open_models(
        policy, ref, tokenizer=tokenizer, dtype=dtype, trust_remote_code=trust_remote_code, device=device
    )
    ids, openings = encode_prompts(read, models.tokenizer)
    wanted = wanted_of(ids, samples)
    done: list[Generated] = []
    for batch in batches_by_tokens(wanted, max_new_tokens=max_new_tokens, budget=max_tokens_per_batch):
        done += generate_batch(batch, decoder, models, sampling)
        if progress is not None:
            progress(len(done), len(wanted))
    return as_table(done, read, models.tokenizer, openings)


def as_decoder(given: str | Decoder) -> Decoder:
    """A decoder, or the one of that name with its usual settings."""
    if isinstance(given, Decoder):
        return given
    if given not in DECODERS:
        raise ConfigError(
            f"decode must be one of {', '.join(DECODERS)}, got {given!r}{did_you_mean(str(given), DECODERS)}"
        )
    return DECODERS[given]()


def generate_batch(batch: Sequence[Wanted], decoder: Decoder, models: Models, sampling: Sampling) -> list[Generated]:
    """`sample_batch` with opened models."""
    return sample_batch(
        batch, decoder, models.policy, models.ref, sampling=sampling, end_ids=models.end_ids, context=models.context
    )


def encode_prompts(prompts: pl.DataFrame, tokenizer: Tokenizer) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Row -> the tokens of a prompt, with what begins the assistant's turn; row -> what of that is the answer's."""
    found: dict[int, list[int]] = {}
    openings: dict[int, str] = {}
    texts = []
    for row in prompts.iter_rows(named=True):
        messages, options = plain_messages(row["prompt"]), template_options(row)
        try:
            texts.append(apply_chat_template(messages, tokenizer, add_generation_prompt=True, **options))
            openings[row["row"]] = find_opening(messages, texts[-1], tokenizer, options)
        except ConfigError as error:
            raise DataError(f"row {row['row']}, prompt: {error}") from None
    for row, ids in zip(prompts["row"].to_list(), tokenizer.encode(texts).to_list(), strict=True):
        if not ids:
            raise DataError(f"row {row}, prompt: the tokenizer makes no token of it; write a longer prompt")
        found[row] = ids
    return found, openings


def as_table(
    done: Sequence[Generated], prompts: pl.DataFrame, tokenizer: Tokenizer, openings: Mapping[int, str]
) -> pl.DataFrame:
    """The samples as a table of schema SCHEMA, by row and sample; `openings` are those of `encode_prompts`."""
    own = prompts.filter(pl.col("row").is_in([*{sample.row for sample in done}]))
    chats = dict(zip(own["row"].to_list(), own["prompt"].to_list(), strict=True))
    ordered = sorted(done, key=lambda sample: (sample.row, sample.sample))
    said = decode_texts([sample.ids[:-1] if sample.finished else sample.ids for sample in ordered], tokenizer)
    texts = [openings[sample.row] + text for sample, text in zip(ordered, said, strict=True)]
    rows = [
        {
            "row": sample.row, "sample": sample.sample,
            "prompt": chats[sample.row], "response": text, "response_complete": sample.finished,
            "messages": [*chats[sample.row], {"role": "assistant", "content": text, "extra": None}],
            "ids": sample.ids, "finished": sample.finished, "logp_policy": sample.logp_policy,
            "logp_ref": sample.logp_ref or None, "logp_sampled": sample.logp_sampled, "kl": sample.kl or None,
            "kl_sampled": sample.kl_sampled or None, "led_by": [LEADERS[leader] for leader in sample.led_by],
        }
        for sample, text in zip(ordered, texts, strict=True)
    ]  # fmt: skip
    further = [name for name in ("tools", "template_kwargs") if name in own.columns]  # that the chat was rendered with
    table = pl.DataFrame(rows, schema=SCHEMA)
    return table.join(own.select("row", *further), on="row", how="left", maintain_order="left") if further else table


def decode_texts(ids: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[str]:
    """The texts that tokens spell, without special tokens; a warning where there are any."""
    library, special = _open_library(tokenizer.json)
    if found := special.intersection(*[chain.from_iterable(ids)]):
        logger.warning(
            "samples hold special tokens that their text lacks, such as %s; the column ids has them",
            library.id_to_token(min(found)),
        )
    return list(library.decode_batch([list(own) for own in ids]))


@lru_cache(maxsize=1)
def _open_library(file: bytes) -> tuple[Any, frozenset[int]]:
    """The tokenizer as the library has it, and its special tokens."""
    from tokenizers import Tokenizer as Library

    library = Library.from_str(file.decode())
    added = library.get_added_tokens_decoder()
    return library, frozenset(token for token, own in added.items() if own.special)
