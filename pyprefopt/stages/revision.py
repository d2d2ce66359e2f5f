"""Stages `revision_better` and `revision_worse`: every response behind a prompt that asks to write it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyprefopt.data.store.segments import KINDS, SegmentStore
from pyprefopt.errors import ConfigError, DataError, agreeing
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits, rows_hash
from pyprefopt.stages.sources import texts_of
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import content_hash
from pyprefopt.types import unkeyed
from pyprefopt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.rewards import Contrastive

logger = logging.getLogger("pyprefopt")
WORDING = ("prefix", "context", "wrap", "max_tokens", "overflow", "forced")  # of a provider: what these stages read


@dataclass(frozen=True, kw_only=True)
class Revision(Stage):
    """Every response behind the prompt `better` or `worse`: keyed by the prompt's wording, not by its file."""

    data: Artifact
    rows: str  # hash of the files that the texts come from
    prompt: str
    wording: Mapping[str, Any]
    direction: str
    version: str = __version__  # another one may read, render or tokenize otherwise
    provider: Contrastive = unkeyed()

    @classmethod
    def of(cls, provider: Contrastive, data: Artifact, direction: str) -> Revision:
        """The revision of `data` in one direction, with the prompt and wording of `provider`."""
        return cls(
            name=f"revision_{direction}", data=data, rows=rows_hash(data), prompt=provider.prompt(direction),
            wording={name: getattr(provider, name) for name in WORDING}, direction=direction, provider=provider,
        )  # fmt: skip

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Stores of the splits, one group a response: the revision prompt, then the response's own ids and mask.

        A group's row is the response's line in the data's store; lines whose revision is too long are left out.
        """
        from pyprefopt.data.tokenization.segments import load_tokenizer

        data, provider = self.data, self.provider
        tokenizer = load_tokenizer(data.directory / "tokenizer")
        longest, facts, prints = 0, {}, {}
        for split, source in open_splits(data):
            texts = texts_of(runtime, split, source)
            store = SegmentStore.write(self._segments(tokenizer, source, texts, split), directory / split)
            longest = max(longest, int(store.longest_rows.max()))
            left_out = int((source.segments != 0).sum()) - store.num_rows
            if left_out:
                logger.warning(
                    "%s: %d of %d responses %s longer than rewards.max_tokens (%d) with the revision prompt (%s), "
                    "and %s rewards of 0; raise rewards.max_tokens, or set rewards.overflow to error to see them",
                    split, left_out, left_out + store.num_rows, agreeing(left_out, "are"), provider.max_tokens,
                    self.direction, agreeing(left_out, "get"),
                )  # fmt: skip
            facts[split] = {"responses": store.num_rows, "left_out": left_out, "tokens": int(store.lengths.sum())}
            prints[split] = store.fingerprint
        return {
            "facts": facts, "fingerprint": content_hash(prints), "longest": longest,
            "vocab_size": data.manifest["vocab_size"], "length_setting": "rewards.max_tokens",
        }  # fmt: skip

    def _segments(self, tokenizer: Tokenizer, store: SegmentStore, texts: pl.DataFrame, split: str) -> pl.DataFrame:
        import polars as pl

        provider = self.provider
        lines = np.flatnonzero(store.segments != 0)
        prompts = tokenizer.encode(pl.Series("ids", list(self._prompts(tokenizer, store, texts, split))))
        segments = pl.from_arrow(store.table.select(["row", "ids", "mask"]))
        assert isinstance(segments, pl.DataFrame)  # noqa: S101  (a table gives a frame)
        responses = segments[lines].rename({"row": "source_row"})
        frame = responses.with_columns(row=pl.Series(lines, dtype=pl.UInt64), prompt=prompts)
        length = pl.col("prompt").list.len() + pl.col("ids").list.len()
        long = frame.filter(length > provider.max_tokens).with_columns(length=length)
        if long.height and provider.overflow == "raise":
            first = long.row(0, named=True)
            raise DataError(
                f"{split} row {first['source_row']}: revision prompt and response must have at most rewards.max_tokens "
                f"= {provider.max_tokens} tokens, got {first['length']} ({long.height} such responses); raise it (and "
                "max_tokens_per_batch), or set rewards.overflow to zero to give them rewards of 0"
            )
        frame = frame.filter(length <= provider.max_tokens)
        if frame.is_empty():
            raise DataError(
                f"{split}: no revision prompt with its response has at most rewards.max_tokens = {provider.max_tokens} "
                "tokens; raise it"
            )
        none = pl.col("prompt").list.eval(pl.lit(value=False))
        prompt = frame.select(
            "row", pl.lit(0, pl.UInt16).alias("segment"), kind=pl.lit("prompt"), ids="prompt", mask=none
        )
        response = frame.select(
            "row", pl.lit(1, pl.UInt16).alias("segment"), kind=pl.lit("response"), ids="ids", mask="mask"
        )
        return pl.concat([prompt, response]).sort("row", "segment")

    def _prompts(self, tokenizer: Tokenizer, store: SegmentStore, texts: pl.DataFrame, split: str) -> Iterator[str]:
        """The text before every response, in the order of the store's lines."""
        provider = self.provider
        rows = {row["row"]: row for row in texts.iter_rows(named=True)}
        where = store.table["row"].to_numpy()
        for line in np.flatnonzero(store.segments != 0):
            row, kind = rows[int(where[line])], KINDS[store.kinds[line]]
            revision = provider.revision(self.prompt, _messages(row["prompt"]), provider.answer(_messages(row[kind])))
            try:
                yield _opened(provider, tokenizer, revision)
            except ConfigError as error:
                raise DataError(f"{split} row {int(where[line])}: the revision prompt: {error}") from None


def check_differ(better: Artifact, worse: Artifact) -> None:
    """ConfigError where the two prompts are the same tokens, so that every reward would be 0."""
    if better.fingerprint == worse.fingerprint:
        raise ConfigError(
            "rewards.better_prompt and rewards.worse_prompt must differ in their tokens, but are the same (a small "
            "tokenizer may know none of their words); give two files in words that it knows"
        )


def _opened(provider: Contrastive, tokenizer: Tokenizer, revision: str) -> str:
    """The revision as a user's message with the assistant's turn open, or as bare text; then what is forced."""
    if provider.wrap == "raw":
        return f"{tokenizer.bos_token or ''}{revision}\n{provider.forced}"
    chat = [{"role": "user", "content": revision}]
    return tokenizer.render(chat, add_generation_prompt=True) + provider.forced


def _messages(chat: list[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"] or ""} for message in chat]
