"""What a method that ranks candidates needs of its data: of each prompt two responses or more, each with a score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyprefopt.data.store.segments import USER_WEIGHTS
from pyprefopt.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.store.segments import SegmentStore

ALONE = ("one_response", "there must be at least 2 responses to rank", "drop the row, or train sft on it")
UNSCORED = ("no_score", "each response must have a score, a finite number", "score every response, or drop the row")


def drop_unranked(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The candidate sets that can be ranked, and rejects (schema REJECTS) for the others."""
    import polars as pl

    from pyprefopt.data.reading.rejects import REJECTS

    scores, count = pl.col("scores").cast(pl.List(pl.Float32)), pl.col("responses").list.len()
    scored = scores.list.eval(pl.element().is_finite().fill_null(value=False)).list.all().fill_null(value=False)
    shown = pl.struct(scores.alias("scores")).struct.json_encode().str.slice(0, 80)

    def rejected(rows: pl.DataFrame, field: str, value: pl.Expr, why: tuple[str, str, str]) -> pl.DataFrame:
        said = {"file": "", "field": field} | dict(zip(("reason", "rule", "remedy"), why, strict=True))
        told = rows.select("row", value=value, **{name: pl.lit(text) for name, text in said.items()})
        return told.select(REJECTS.names()).cast(REJECTS)

    alone, several = frame.filter(count < 2), frame.filter(count >= 2)
    bad = [rejected(alone, "responses", pl.format("{} response", count), ALONE)]
    bad.append(rejected(several.filter(~scored), "scores", shown, UNSCORED))
    return several.filter(scored), pl.concat(bad).sort("row")


def check_kind(method: str, path: str, kind: str) -> None:
    """ConfigError where a file that was not understood as `kind` holds what other methods train on."""
    from pyprefopt.data.reading.frames import scan_candidates, scan_preferences

    scan, held, remedy = (scan_preferences, "preferences", "a method on pairs, such as dpo")
    if kind == "preferences":
        scan, held, remedy = (scan_candidates, "candidates", "method rrhf")
    try:
        scan(path)
    except DataError:
        return
    raise ConfigError(f"method {method} trains on {kind}, and '{path}' holds {held}; give it {kind}, or take {remedy}")


def best_responses(segments: pl.DataFrame) -> pl.DataFrame:
    """Of each prompt the response with the highest score (the first of equals), as segments for SFT."""
    import polars as pl

    first = ["row", "score", "segment"]
    best = segments.filter(pl.col("segment") > 0).sort(first, descending=[False, True, False])
    best = best.unique("row", keep="first", maintain_order=True).select("row", "segment")
    prompts = best.with_columns(segment=pl.lit(0, pl.UInt16))
    kept = segments.join(pl.concat([prompts, best]), on=["row", "segment"], how="semi", maintain_order="left")
    return kept.drop(USER_WEIGHTS, strict=False).with_columns(pl.col("segment").clip(upper_bound=1))


def check_ranked(store: SegmentStore, where: str) -> None:
    """DataError naming the first row of a prepared folder that cannot be ranked."""
    responses = np.diff(store.group_offsets) - 1
    unscored = np.add.reduceat((store.segments > 0) & ~np.isfinite(store.scores), store.group_offsets[:-1])
    for bad, (_, rule, remedy) in ((responses < 2, ALONE), (unscored > 0, UNSCORED)):
        if bad.any():
            row = store.rows[int(np.argmax(bad))]
            raise DataError(f"{where}, row {row} (and {bad.sum() - 1} more): {rule}; {remedy}")
