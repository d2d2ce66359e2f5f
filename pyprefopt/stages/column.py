"""Stage `column`: token rewards that the data brings, on the policy's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.store import USER_WEIGHTS, SegmentStore, ValueStore
from pyprefopt.errors import ConfigError, DataError, did_you_mean
from pyprefopt.stages.artifact import Artifact, Stage, content_hash
from pyprefopt.stages.data import split_names
from pyprefopt.stages.transfer import SIDES, texts_of

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.train.config import RunConfig


def column_stage(name: str, data: Artifact) -> Stage:
    """Keyed by the tokens and by the files that the rows come from."""
    return Stage("column", {"column": name}, {"data": data.fingerprint, "rows": rows_hash(data)})


def rows_hash(data: Artifact) -> str:
    """Hash of the files that the data was read from."""
    return content_hash(sorted(data.manifest["inputs"].values()))


def build_column(config: RunConfig, name: str, data: Artifact, directory: Path) -> dict[str, Any]:
    """Write `chosen_NAME` and `rejected_NAME` of every split as values of its tokens.

    A value is given for each token of the content, or for spans of characters; what is not covered, and what the
    template wrote, gets 0. Rules are those of user weights (`data.weights`), but a reward may be negative: its
    positive and its negative part are brought onto the tokens as weights, and the 1 outside of spans cancels out.

    Raises:
        ConfigError: the data was prepared without offsets.
        DataError: a column is missing or of another type, or a row breaks a rule.
    """
    import polars as pl

    for split in split_names(data.directory):
        store = SegmentStore.open(data.directory / split)
        if "starts" not in store.table.column_names:
            raise ConfigError("rewards column needs the tokens' places in the text; prepare the data with offsets")
        segments = pl.from_arrow(store.table)
        assert isinstance(segments, pl.DataFrame)  # noqa: S101  (a table gives a frame)
        rows = texts_of(config, data, split, store)
        _check_columns(rows, name, split)
        up, down = (_attach(segments, rows, name, split, sign) for sign in (1, -1))
        values = (up - down).cast(pl.List(pl.Float32))
        ValueStore.write(directory / split, store, values, key=f"column {name}")
    return {}


def _check_columns(rows: pl.DataFrame, name: str, split: str) -> None:
    for side in SIDES:
        column = f"{side}_{name}"
        if column not in rows.columns:
            raise DataError(
                f"{split}: the rows have no column '{column}'{did_you_mean(column, rows.columns)}; rewards column "
                "takes chosen_NAME and rejected_NAME, with --rewards.column NAME"
            )


def _attach(segments: pl.DataFrame, rows: pl.DataFrame, name: str, split: str, sign: int) -> pl.Series:
    """One part of the rewards (`sign` 1: the positive, -1: the negative one) as weights of the tokens."""
    import polars as pl

    from pyprefopt.data.weights import attach_weights

    parts = rows.with_columns(_part(rows, f"{side}_{name}", sign).alias(f"{side}_weights") for side in SIDES)
    try:
        weighted, rejects = attach_weights(segments, parts)
    except DataError as error:
        raise DataError(f"{split}: {_renamed(str(error), name)}") from None
    if rejects.height:
        first = rejects.row(0, named=True)
        rule = _renamed(str(first["rule"]), name).replace("a finite number >= 0", "a finite number")
        remedy = "look at the row" if rule != first["rule"] else first["remedy"]
        raise DataError(
            f"{split} row {first['row']}, {_renamed(first['field'], name)}: {rule}, got {first['value']} "
            f"({rejects.height} such rows); {remedy}"
        )
    return weighted[USER_WEIGHTS].cast(pl.List(pl.Float64))


def _part(rows: pl.DataFrame, column: str, sign: int) -> pl.Expr:
    """The column with what has the other sign set to 0; a column of another type as it is."""
    import polars as pl

    dtype = rows.schema[column]
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    if isinstance(inner, pl.Struct) and {field.name for field in inner.fields} >= {"start", "end", "weight"}:
        own = pl.element().struct
        part = (own.field("weight").cast(pl.Float64) * sign).clip(lower_bound=0)
        return pl.col(column).list.eval(pl.struct(own.field("start"), own.field("end"), part.alias("weight")))
    if inner is not None and inner.is_numeric():
        return pl.col(column).list.eval((pl.element().cast(pl.Float64) * sign).clip(lower_bound=0))
    return pl.col(column)


def _renamed(text: str, name: str) -> str:
    """A message of user weights in the words of this column."""
    for side in SIDES:
        text = text.replace(f"{side}_weights", f"{side}_{name}")
    return text.replace("one weight for each", "one reward for each").replace("a weight must", "a reward must")
