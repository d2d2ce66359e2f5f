"""A model of another tokenizer: the same texts in its own tokens, and its log-probs moved to the policy's tokens.

The model reads the text that the policy reads, with the chat template of its own tokenizer (the policy's where it has
none). A response that was cut for the policy is cut at the same byte, and ends with a turn end where the policy's does.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pyprefopt import ranks
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import DataError
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import split_names
from pyprefopt.stages.models import vocabulary_difference
from pyprefopt.stages.sources import OFFSETS, texts_of
from pyprefopt.stages.stage import Artifact, Stage, content_hash

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.tokenization.segments import Tokenizer

SIDES = ("chosen", "rejected")

logger = logging.getLogger("pyprefopt")


def own_tokenizer(model: str, data: Artifact) -> Tokenizer | None:
    """The tokenizer of a model that does not read the policy's token ids; None where it does.

    Raises:
        ConfigError: it has a tokenizer of another format, or one without an EOS token.
    """
    from pyprefopt.data.tokenization.tokenizer import load_own_tokenizer

    difference = vocabulary_difference(model, data)
    if difference is None:
        return None
    logger.info("%s reads the texts with its own tokenizer (%s)", model, difference)
    return load_own_tokenizer(model, chat_template=data.directory / "tokenizer" / "chat_template.jinja")


def tokens_stage(data: Artifact, tokenizer: Tokenizer) -> Stage:
    """The policy's texts in another tokenizer's tokens."""
    texts = content_hash(sorted(data.manifest["inputs"].values()))
    return Stage("tokens", {}, {"data": data.fingerprint, "texts": texts, "tokenizer": tokenizer.fingerprint})


def build_tokens(
    config: RunConfig, data: Artifact, tokenizer: Tokenizer, model: str, directory: Path
) -> dict[str, Any]:
    """Write the splits `train` and `eval`: line by line the policy's, in the tokens of `model`.

    Raises:
        DataError: a row cannot be tokenized by it, or (candidates) was cut.
    """
    facts: dict[str, Any] = {}
    longest, longest_row = 0, ""
    for split in split_names(data.directory):
        policy = SegmentStore.open(data.directory / split)
        frame = _cut_as(policy, texts_of(config, split, policy), split)
        store = SegmentStore.write(_tokenize(frame, tokenizer, model, split), directory / split)
        facts[split] = {"rows": store.num_rows, "tokens": int(store.lengths.sum())}
        if store.longest_rows.max() > longest:
            longest = int(store.longest_rows.max())
            longest_row = f"{split} row {store.rows[int(store.longest_rows.argmax())]}"
    return {"facts": facts, "vocab_size": tokenizer.vocab_size, "longest": longest, "longest_row": longest_row}


def _cut_as(policy: SegmentStore, frame: pl.DataFrame, split: str) -> pl.DataFrame:
    """The texts cut where the policy's tokens end, without a turn end where those have none."""
    import polars as pl

    if frame.height != policy.num_rows:
        raise DataError(f"{split}: {policy.num_rows} rows were tokenized, {frame.height} are there now; run again")
    lines = pl.DataFrame(policy.table.select(["row", "segment", "ends", "mask", "cut"]))
    prompts = lines.filter((pl.col("segment") == 0) & (pl.col("cut") > 0))
    if prompts.height:
        raise DataError(
            f"{split} row {prompts['row'][0]}: its prompt was cut to max_prompt_tokens, and a model of another "
            "tokenizer needs it whole; prepare the data again without prompt_overflow"
        )
    lines = lines.filter(pl.col("segment") != 0).select(
        "row",
        "segment",
        "cut",
        bytes=pl.col("ends").list.max(),
        ended=pl.col("ends").list.last().is_null() & pl.col("mask").list.last(),
    )
    if "responses" in frame:
        _refuse_cut(lines, split)
        return frame
    for number, side in enumerate(SIDES, start=1):
        part = lines.filter(segment=number)
        chats = _cut_chats(frame[side], part["cut"], part["bytes"])
        frame = frame.with_columns(chats, part["ended"].alias(f"{side}_complete"))
    return frame


def _refuse_cut(lines: pl.DataFrame, split: str) -> None:
    """Candidates have no mark for a response that was cut."""
    import polars as pl

    cut = lines.filter((pl.col("cut") > 0) | ~pl.col("ended")).head(1)
    if cut.height:
        raise DataError(
            f"{split} row {cut['row'][0]}, response {cut['segment'][0]}: it was cut, and candidates that are cut "
            "cannot be read by a model of another tokenizer; raise max_tokens, leave truncation out, or drop the row"
        )


def _cut_chats(chats: pl.Series, cut: pl.Series, ends: pl.Series) -> pl.Series:
    """The chats with `ends` bytes of the last message's content where tokens were cut; a character stays whole."""
    import polars as pl

    places = np.flatnonzero(cut.to_numpy() > 0)
    shorter = chats.gather(places).to_list()
    for chat, end in zip(shorter, ends.gather(places), strict=True):
        content = chat[-1]["content"].encode()
        while end < len(content) and content[end] & 0xC0 == 0x80:  # inside a character
            end += 1  # noqa: PLW2901
        chat[-1]["content"] = content[:end].decode()
    order = np.arange(len(chats))
    order[places] = len(chats) + np.arange(len(places))
    return pl.concat([chats, pl.Series(chats.name, shorter, dtype=chats.dtype)]).gather(order)


def _tokenize(frame: pl.DataFrame, tokenizer: Tokenizer, model: str, split: str) -> pl.DataFrame:
    from pyprefopt.data.tokenization.segments import tokenize_rows

    result = tokenize_rows(frame, tokenizer)
    if result.rejects.height:
        first = result.rejects.sort("row").row(0, named=True)
        raise DataError(
            f"{split} row {first['row']}, {first['field']}: the tokenizer of {model} cannot read it: {first['rule']} "
            f"({first['reason']}; {result.rejects.height} such rows); drop these rows from the data"
        )
    return result.segments


def roomy(config: RunConfig, tokens: Artifact) -> RunConfig:
    """The settings with a micro-batch that holds the longest row in these tokens: no setting bounds their number."""
    longest = 0
    for split in split_names(tokens.directory):
        store = SegmentStore.open(tokens.directory / split)
        longest = max(longest, int(Packer(store, layout=config.layout).lengths(np.arange(store.num_rows)).max()))
    if longest <= config.max_tokens_per_batch:
        return config
    logger.info("%s: micro-batches of %d tokens, for the longest row", tokens.name, longest)
    return replace(config, max_tokens_per_batch=longest)


def moved_stage(data: Artifact, tokens: Artifact, logps: Artifact) -> Stage:
    """Per-token values on other tokens (`logps`), moved to the policy's."""
    return Stage("moved", {}, {"data": data.fingerprint, "tokens": tokens.fingerprint, "logps": logps.fingerprint})


def build_moved(data: Artifact, tokens: Artifact, logps: Artifact, directory: Path) -> dict[str, Any]:
    """Write the values on the policy's tokens; what each response has in all stays the same."""
    from pyprefopt.data.batching.alignment import transfer_values

    for split in split_names(data.directory):
        policy, other = (SegmentStore.open(artifact.directory / split) for artifact in (data, tokens))
        for name in ("row", "segment"):
            if not policy.table[name].equals(other.table[name]):
                raise DataError(f"{split}: the {name}s of the two tokenizations differ; delete {tokens.directory}")
        columns: dict[str, pa.ChunkedArray] = {}
        for end, store in (("from", other), ("to", policy)):
            columns |= {f"{name}_{end}": store.table[name] for name in (*OFFSETS, "mask")}
        values = ValueStore.open(logps.directory / split).check(other).values
        moved: Any = transfer_values(values, **columns)
        ValueStore.write(directory / split, policy, moved, key="moved to the policy's tokens")
    return {}


def warn_of_two_tokenizers(*logps: Artifact) -> None:
    """Say that log-probs which are to be subtracted were made on different tokens."""
    if len({artifact.manifest["inputs"].get("tokens") for artifact in logps}) > 1 and ranks.is_main():
        logger.warning(
            "the models of %s have different tokenizers, and the difference also holds how each splits the text; for "
            "an oracle, give the model that it was trained from as base (with policy_init model)",
            " and ".join(artifact.name for artifact in logps),
        )
