"""Stage `column`: token rewards that the data brings, on the policy's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.store.segments import USER_WEIGHTS, SegmentStore, ValueStore
from pyprefopt.errors import ConfigError, DataError, did_you_mean
from pyprefopt.stages.data import split_names
from pyprefopt.stages.sources import source_of, texts_of
from pyprefopt.stages.stage import Artifact, Stage, content_hash

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.settings.config import RunConfig


def column_stage(name: str, data: Artifact) -> Stage:
    """Keyed by the tokens and by the files that the rows come from."""
    return Stage("column", {"column": name}, {"data": data.fingerprint, "rows": rows_hash(data)})


def rows_hash(data: Artifact) -> str:
    """Hash of the files that the data was read from."""
    return content_hash(sorted(data.manifest["inputs"].values()))


def build_column(config: RunConfig, name: str, data: Artifact, directory: Path) -> dict[str, Any]:
    """Write `chosen_NAME` and `rejected_NAME` of every split as values of its tokens.

    A value is given for each token of the content, or for spans of characters; what is not covered, and what the
    template wrote, gets 0. Rules are those of user weights (`data.weights`), but a reward may be negative.

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
        rows = texts_of(config, split, store)
        where = f"{source_of(config, split).path}, {split}"
        _check_columns(rows, name, where)
        ValueStore.write(directory / split, store, _attach(segments, rows, name, where), key=f"column {name}")
    return {}


def _check_columns(rows: pl.DataFrame, name: str, where: str) -> None:
    for side in ("chosen", "rejected"):
        column = f"{side}_{name}"
        if column not in rows.columns:
            raise DataError(
                f"{where}: the rows have no column '{column}'{did_you_mean(column, rows.columns)}; rewards column "
                "takes chosen_NAME and rejected_NAME, with rewards.column NAME"
            )


def _attach(segments: pl.DataFrame, rows: pl.DataFrame, name: str, where: str) -> pl.Series:
    """The rewards of each token."""
    from pyprefopt.data.tokenization.token_columns import TokenColumn, attach_weights

    kind = TokenColumn(name, noun="reward", default=0.0, signed=True)
    try:
        rewarded, rejects = attach_weights(segments, rows, kind)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if rejects.height:
        first = rejects.row(0, named=True)
        raise DataError(
            f"{where}, row {first['row']}, {first['field']}: {first['rule']}, got {first['value']} ({rejects.height} "
            f"such rows); {first['remedy']} (on_error skip leaves out no row for its rewards)"
        )
    return rewarded[USER_WEIGHTS]
