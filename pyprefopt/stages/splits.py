"""Rows of prepared segments as the stores of a run: held out by prompt, cut for training, best responses for SFT."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyprefopt.data.shuffling import permutation
from pyprefopt.data.store.segments import USER_WEIGHTS, SegmentStore, ValueStore, typed, value_lists
from pyprefopt.data.store.shards import ShardWriter
from pyprefopt.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.sources import Source
    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.data.truncation.rule import Truncation

ALONE = ("one_response", "there must be at least 2 responses to rank", "drop the row, or train sft on it")
UNSCORED = ("no_score", "each response must have a score, a finite number", "score every response, or drop the row")
PLANTED = ("chosen_planted", "rejected_planted")  # columns of the bytes that carry the preference, where known


@dataclass(frozen=True)
class Part:
    """Rows of a set of segments."""

    store: SegmentStore
    rows: NDArray[np.uint64]  # [groups] of the set
    keep: NDArray[np.bool_]  # [groups]

    @classmethod
    def whole(cls, store: SegmentStore) -> Part:
        """All rows."""
        tables = store.tables() if store.manifest["groups"] else ()
        rows = np.concatenate([np.empty(0, np.uint64), *(SegmentStore(table, {}).rows for table in tables)])
        return cls(store, rows, np.ones(len(rows), np.bool_))

    def is_whole(self, first: int | None = None) -> bool:
        """Whether the first so many rows are all rows of the set."""
        return bool(self.keep.all()) and (first is None or first >= len(self.keep))

    def only(self, rows: pl.Series) -> Part:
        """Of the rows those of these numbers."""
        return replace(self, keep=self.keep & np.isin(self.rows, rows.to_numpy()))

    def without(self, rows: pl.Series) -> Part:
        """The rows but those of these numbers."""
        return replace(self, keep=self.keep & ~np.isin(self.rows, rows.to_numpy()))

    def tables(self) -> Iterator[pa.Table]:
        """The segments of the rows, a shard at a time."""
        first = 0
        for table in self.store.tables() if self.keep.any() else ():
            groups = first + np.cumsum(SegmentStore(table, {}).segments == 0)
            first = int(groups[-1])
            edges = np.flatnonzero(np.diff(np.concatenate([[False], self.keep[groups - 1], [False]])))
            runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
            yield pa.concat_tables([table.slice(0, 0), *(table.slice(begin, end - begin) for begin, end in runs)])

    def hold_out(self, keys: pl.DataFrame, ratio: float, seed: int) -> tuple[Part, Part]:
        """What is trained on, and what is held out of it by the `prompt_keys` of all rows."""
        kept, held_out = hold_out(keys, ratio, seed)
        return self.only(kept["row"]), self.only(held_out["row"])


def hold_out(frame: pl.DataFrame, ratio: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off `ratio` of the prompts (at least one), so that no prompt is on both sides; seeded, order kept."""
    import polars as pl

    if ratio == 0 or frame.height < 2:
        return frame, frame.clear()
    grouped = frame.with_columns(pl.col("row").min().over("prompt").alias("_group"))
    groups = grouped["_group"].unique().sort().to_numpy()
    if len(groups) < 2:
        raise DataError(
            "eval_ratio must hold out whole prompts, but all rows have the same one; set eval_ratio 0, or eval_data"
        )
    count = min(max(1, round(ratio * len(groups))), len(groups) - 1)
    picked = groups[permutation(len(groups), seed=seed, epoch=0)[:count]]
    held_out = grouped["_group"].is_in(pl.Series(picked).implode())
    return frame.filter(~held_out), frame.filter(held_out)


def prompt_keys(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """`row`, and `prompt` as a hash, of frames with these columns: equal for equal prompts."""
    import polars as pl

    key = pl.struct("prompt").struct.json_encode().hash()
    found = [(frame["row"].to_numpy().copy(), frame.select(key).to_numpy()[:, 0]) for frame in frames]  # no frame stays
    rows, keys = zip(*found, strict=True)
    return pl.DataFrame({"row": np.concatenate(rows), "prompt": np.concatenate(keys)})


def unranked(store: SegmentStore, file: str) -> pl.DataFrame:
    """Rejects (schema REJECTS) for the candidate sets that cannot be ranked, each for its first fault."""
    import polars as pl

    from pyprefopt.data.reading.rejects import REJECTS

    if not store.manifest["groups"]:
        return REJECTS.to_frame()
    rejects, offsets, scores = [], store.group_offsets, store.scores
    unscored = np.add.reduceat((store.segments > 0) & ~np.isfinite(scores), offsets[:-1]) > 0
    alone = np.diff(offsets) < 3
    for group in np.flatnonzero(alone | unscored):
        own = scores[offsets[group] + 1 : offsets[group + 1]]
        values = [None if np.isnan(score) else float(str(score)) for score in own]
        if alone[group]:
            field, value, why = "responses", f"{len(values)} response", ALONE
        else:
            field, value, why = "scores", json.dumps({"scores": values}, separators=(",", ":"))[:80], UNSCORED
        rejects.append((file, store.rows[group], field, value, *why))
    return pl.DataFrame(rejects, REJECTS, orient="row")


def cut_responses(
    tables: Iterable[pa.Table], rule: Truncation, tokenizer: Tokenizer, file: str, rejects: list[pl.DataFrame]
) -> Iterator[pa.Table]:
    """The segments truncated; pairs that are then the same are left out, and put to the rejects."""
    from pyprefopt.data.tokenization.identical_pairs import without_identical
    from pyprefopt.data.truncation.dispatch import truncate_by

    for table in tables:
        kept, identical = without_identical(truncate_by(table, rule, tokenizer=tokenizer), file)
        rejects.append(identical)
        yield kept


def as_candidates(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The segments of pairs as those of two candidates a prompt: the chosen one scores 1, the rejected one 0."""
    for table in tables:
        kind = table["kind"]
        scores = pc.if_else(pc.equal(kind, "prompt"), None, pc.cast(pc.equal(kind, "chosen"), pa.float32()))
        kinds = pc.if_else(pc.equal(kind, "prompt"), kind, pa.scalar("response", kind.type))
        for name, column in (("kind", kinds), ("score", scores)):
            there = table.schema.get_field_index(name)
            table = table.append_column(name, column) if there < 0 else table.set_column(there, name, column)  # noqa: PLW2901
        yield table


def best_responses(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Of each prompt the response with the highest score (the first of equals), as segments for SFT."""
    import polars as pl

    first = ["row", "score", "segment"]
    for table in tables:
        segments = pl.DataFrame(table)
        best = segments.filter(pl.col("segment") > 0).sort(first, descending=[False, True, False])
        best = best.unique("row", keep="first", maintain_order=True).select("row", "segment")
        prompts = best.with_columns(segment=pl.lit(0, pl.UInt16))
        kept = segments.join(pl.concat([prompts, best]), on=["row", "segment"], how="semi", maintain_order="left")
        yield kept.with_columns(pl.col("segment").clip(upper_bound=1)).to_arrow()


def write_split(tables: Iterable[pa.Table], target: Path, first: int | None = None) -> SegmentStore | None:
    """Write segments as the store `target`, and their user weights beside it.

    Args:
        tables: segments; all of them are read, whatever `first` is.
        target: the store's folder.
        first: only so many rows are written; None: all.

    Returns:
        The store of segments; None where there are no rows.
    """
    segments: ShardWriter[SegmentStore] | None = None
    weights: ShardWriter[ValueStore] | None = None
    for whole in tables:
        missing = None if first is None else first - (0 if segments is None else segments.groups)
        starts = SegmentStore(whole, {}).group_offsets
        table = typed(whole if missing is None else whole.slice(0, int(starts[: missing + 1][-1])))
        if not table.num_rows:
            continue
        if USER_WEIGHTS in table.column_names:
            weights = weights or ShardWriter(ValueStore, weights_of(target))
            weights.add(_values(table))
            table = table.drop_columns([USER_WEIGHTS])
        segments = segments or ShardWriter(SegmentStore, target)
        segments.add(table)
    if segments is None:
        return None
    store = segments.finish(groups=segments.groups, tokens=segments.tokens)
    if weights is not None:
        weights.finish(key=USER_WEIGHTS, segments=store.fingerprint)
    return store


def weights_of(target: Path) -> Path:
    """Where the user weights of a split's store are."""
    return target.with_name(f"{target.name}_weights")


def _values(table: pa.Table) -> pa.Table:
    """The user weights of segments, as lines of a store of values."""
    lists = value_lists(SegmentStore(table, {}), table[USER_WEIGHTS], USER_WEIGHTS)
    return pa.Table.from_arrays([table["row"], table["segment"], lists], names=["row", "segment", "values"])


def write_planted(source: Source, store: SegmentStore, target: Path) -> None:
    """Write which tokens the `PLANTED` columns of a split's rows mark, where they hold lists of {start, end}."""
    import polars as pl

    from pyprefopt.data.batching.alignment import spans_to_mask
    from pyprefopt.data.reading.blocks import parse_block
    from pyprefopt.data.reading.extra_columns import carried_columns

    if source.named(PLANTED) != [*PLANTED]:
        return
    kinds = {pl.List(pl.Struct({"start": kind, "end": kind})) for kind in (pl.UInt32, pl.Int64)}  # Parquet, JSON
    found = []
    for block in source.blocks(extra=PLANTED):
        parsed = parse_block(block, source.format, carry=True)
        columns = carried_columns(parsed, PLANTED)
        if not all(columns.schema[name] in kinds for name in PLANTED):
            return
        for segment, name in enumerate(PLANTED, start=1):
            marked = columns.select(pl.lit(segment, pl.UInt16).alias("segment"), spans=name)
            found.append(parsed.frame.select("row").hstack(marked))
    lines = pl.DataFrame(store.table.select(["row", "segment", "starts", "ends"]))
    spans = pl.concat(found, how="vertical_relaxed")  # files of two kinds have two kinds of numbers
    joined = lines.join(spans, on=["row", "segment"], how="left", maintain_order="left")
    planted = spans_to_mask(joined["spans"], joined["starts"], joined["ends"])
    ValueStore.write(target, store, planted, key="planted")
