"""A model of another tokenizer: the same texts in its own tokens, and its log-probs moved to the policy's tokens.

The model reads the text that the policy reads, with the chat template of its own tokenizer (the policy's where it has
none). A response that was cut for the policy is cut at the same byte, and ends with a turn end where the policy's does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pyprefopt import ranks
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import DataError
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.models import tokenizer_json, vocabulary_difference
from pyprefopt.stages.sources import OFFSETS, scores_reasoning, texts_of
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import content_hash
from pyprefopt.types import unkeyed
from pyprefopt.version import __version__

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

    difference = vocabulary_difference(model, tokenizer_json(data))
    if difference is None:
        return None
    logger.info("%s reads the texts with its own tokenizer (%s)", model, difference)
    return load_own_tokenizer(model, chat_template=data.directory / "tokenizer" / "chat_template.jinja")


@dataclass(frozen=True, kw_only=True)
class Tokens(Stage):
    """The texts of `data`, line by line, in another tokenizer's tokens."""

    name: str = "tokens"
    data: Artifact
    rows: str  # hash of the files that the texts come from
    tokenizer: Tokenizer
    version: str = __version__  # another one may read, render or tokenize otherwise
    model: str = unkeyed()  # whose tokenizer it is, for messages

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Write the splits `train` and `eval`.

        Raises:
            DataError: a row cannot be tokenized by it.
        """
        facts: dict[str, Any] = {}
        prints: dict[str, str] = {}
        longest, longest_row = 0, ""
        for split, policy in open_splits(self.data):
            frame = _cut_as(policy, texts_of(runtime, split, policy), split)
            segments = _tokenize(frame, self.tokenizer, self.model, split, scores_reasoning(runtime, split))
            store = SegmentStore.write(segments, directory / split)
            facts[split] = {"rows": store.num_rows, "tokens": int(store.lengths.sum())}
            prints[split] = store.fingerprint
            if store.longest_rows.max() > longest:
                longest = int(store.longest_rows.max())
                longest_row = f"{split} row {store.rows[int(store.longest_rows.argmax())]}"
        return {
            "facts": facts, "fingerprint": content_hash([prints, self.tokenizer.fingerprint]),
            "vocab_size": self.tokenizer.vocab_size, "longest": longest, "longest_row": longest_row,
        }  # fmt: skip


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
            "tokenizer needs it whole; prepare the data again with prompt_overflow drop"
        )
    lines = lines.filter(pl.col("segment") != 0).select(
        "row",
        "segment",
        "cut",
        bytes=pl.col("ends").list.max(),
        ended=pl.col("ends").list.last().is_null() & pl.col("mask").list.last(),
    )
    if "responses" in frame:
        chats = _cut_chats(frame["responses"].explode(), lines["cut"], lines["bytes"])
        flat = lines.select("row", chats.alias("responses"), responses_complete="ended")
        return frame.drop("responses", "responses_complete", strict=False).join(
            flat.group_by("row", maintain_order=True).agg(pl.all()), on="row", maintain_order="left"
        )
    for number, side in enumerate(SIDES, start=1):
        part = lines.filter(segment=number)
        chats = _cut_chats(frame[side], part["cut"], part["bytes"])
        frame = frame.with_columns(chats, part["ended"].alias(f"{side}_complete"))
    return frame


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


def _tokenize(frame: pl.DataFrame, tokenizer: Tokenizer, model: str, split: str, score_reasoning: bool) -> pl.DataFrame:
    from pyprefopt.data.tokenization.segments import tokenize_rows

    # Responses that are the same to this model have the same log-probs: the policy's tokens tell them apart.
    result = tokenize_rows(frame, tokenizer, score_reasoning=score_reasoning, refuse_identical=False)
    result.coverage.check(f"{split}, read by {model}", tokenizer.path)
    if result.rejects.height:
        first = result.rejects.sort("row").row(0, named=True)
        raise DataError(
            f"{split} row {first['row']}, {first['field']}: the tokenizer of {model} cannot read it: {first['rule']} "
            f"({first['reason']}; {result.rejects.height} such rows); drop these rows from the data"
        )
    return result.segments


@dataclass(frozen=True, kw_only=True)
class Moved(Stage):
    """Log-probs on `tokens`, moved to the policy's tokens."""

    name: str = "moved"
    data: Artifact
    tokens: Artifact
    logps: Artifact

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write the values on the policy's tokens; what each response has in all stays the same."""
        from pyprefopt.data.batching.alignment import transfer_values

        for split, policy in open_splits(self.data):
            other = SegmentStore.open(self.tokens.directory / split)
            for name in ("row", "segment"):
                if not policy.table[name].equals(other.table[name]):
                    folder = self.tokens.directory
                    raise DataError(f"{split}: the {name}s of the two tokenizations differ; delete {folder}")
            columns: dict[str, pa.ChunkedArray] = {}
            for end, store in (("from", other), ("to", policy)):
                columns |= {f"{name}_{end}": store.table[name] for name in (*OFFSETS, "mask")}
            values = ValueStore.open(self.logps.directory / split).check(other).values
            moved: Any = transfer_values(values, **columns)
            ValueStore.write(directory / split, policy, moved, key="moved to the policy's tokens")
        return {}


def warn_of_two_tokenizers(*logps: Artifact) -> None:
    """Warn that log-probs which are to be subtracted were made on different tokens."""
    if len({artifact.reads.get("tokens") for artifact in logps}) > 1 and ranks.is_main():
        logger.warning(
            "the models of %s have different tokenizers, and the difference also holds how each splits the text; for "
            "an oracle, give the model that it was trained from as base (with policy_init model)",
            " and ".join(artifact.name for artifact in logps),
        )
