"""`pyprefopt score`: the token rewards of a set, without training a policy on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pyprefopt import ranks
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.room import check_room
from pyprefopt.pipeline.trials.check import check_own
from pyprefopt.pipeline.work_folder import work_folder
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.rules import check_compatible
from pyprefopt.stages.sources import named_sources
from pyprefopt.storage.files import atomic_write
from pyprefopt.storage.folders import Folder, replacing
from pyprefopt.storage.hub import EMBEDDED_DATA

COLUMNS = ("row", "segment", "kind", "ids", "mask", "starts", "ends")


def score(config: RunConfig, out: str | Path) -> dict[str, Any]:
    """Make the token rewards of `config.data` and write them to `out`.

    Stages are kept in `output_dir` and used again, as in a training run.

    Args:
        config: the run whose rewards are made; no policy is trained.
        out: a .parquet file (a line a response: its tokens and `rewards`), or, where the data is a prepared folder, a
            folder that becomes a ValueStore of it.

    Returns:
        The facts of the stage, mean and standard deviation by side among them.

    Raises:
        ConfigError: a setting breaks a rule; `out` is of neither kind.
        ArtifactError: `out` is there, and `config.overwrite` is not set.
        DataError: bad rows, or a reward that is not finite.
    """
    own = check_own(config)
    check_compatible(config)  # some of its settings may have been replaced
    target = Path(out)
    as_table = target.suffix == ".parquet"
    folder = named_sources(config)["data"].folder
    if not as_table and folder is None:
        raise ConfigError(
            f"out must be a .parquet file, got '{target}'; a folder is for values of a folder made by pyprefopt prepare"
        )
    if config.data == EMBEDDED_DATA or config.eval_data is not None or config.eval_ratio > 0:
        raise ConfigError("score takes one set whole: data must be given, eval_data not, and eval_ratio be 0")
    there = target.is_file() or Folder(target).is_finished
    if there and not config.overwrite:
        raise ArtifactError(f"{target} is there already; choose another --out, or pass --overwrite to replace it")
    with work_folder(config):
        own.warn()
        pipeline = Pipeline(config)
        check_room(pipeline, policy=False)
        rewards = pipeline.rewards
        assert rewards is not None  # noqa: S101  (the method needs them, so resolve filled the provider)
        if ranks.is_main():
            store = SegmentStore.open(pipeline.data.directory / "train")
            values = ValueStore.open(rewards.directory / "train").check(store)
            if folder is None or as_table:
                write_token_table(store, {"rewards": values.values}, target)
            elif not there:
                ValueStore.write(target, SegmentStore.open(folder), values.values, key=values.key)
            else:  # what is there stays until the new values are whole
                with replacing(target) as partial:
                    ValueStore.write(partial, SegmentStore.open(folder), values.values, key=values.key)
    return rewards.facts


def write_token_table(store: SegmentStore, values: Mapping[str, pa.ChunkedArray], target: Path) -> None:
    """Write the responses with their tokens and, under their names, values of each token, a line a response."""
    names = [name for name in COLUMNS if name in store.table.column_names]
    table = store.table.select(names)
    for name, lists in values.items():
        table = table.append_column(name, lists)
    table = table.filter(pa.array(store.segments != 0))
    sink = pa.BufferOutputStream()
    split = [f"{name}.list.element" for name in values]
    pq.write_table(table, sink, compression="zstd", use_byte_stream_split=split, use_dictionary=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, sink.getvalue().to_pybytes())
