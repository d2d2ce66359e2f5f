"""What a model computes of a store's responses, in parts: a file each, so that a killed run goes on from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pyprefopt import ranks
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.log import Bar
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import atomic_write
from pyprefopt.types import PackedBatch

PART_BATCHES = 4  # micro-batches of a part, which a killed run computes again at most
LEAST_PARTS = 16  # where there are as many micro-batches, so that ranks have equal shares

# Of a part: `lines` of the segments, `lengths` (values of each line), and under other names values, one after another.
Columns = dict[str, np.ndarray]

logger = logging.getLogger("pyprefopt")


def compute_parts(
    compute: Callable[[Sequence[PackedBatch]], Columns],
    store: SegmentStore,
    directory: Path,
    split: str,
    runtime: RunConfig,
    packing: Mapping[str, Any],
    *,
    title: str,
) -> Columns | None:
    """Compute the values of a store's responses, a part at a time; every rank calls this and takes parts in turn.

    The ranks hand over through files, not through a collective. Parts are the same for any number of ranks, and those
    that a killed run left are used again where they are as they were written.

    Args:
        compute: the columns of some micro-batches.
        store: the segments.
        directory: where the parts are.
        split: begins their names.
        runtime: for the budget of a micro-batch, and for the progress bar.
        packing: options of the packer.
        title: what messages call the work.

    Returns:
        The columns of all parts, on rank 0; None on the others.
    """
    packer = Packer(store, budget_names=("max_tokens_per_batch", "max_tokens"), **packing)
    bins = packer.plan(max_tokens=runtime.max_tokens_per_batch)
    count = min(len(bins), max(LEAST_PARTS, -(-len(bins) // PART_BATCHES)))
    share = f"{split}-{packer.layout}-{runtime.max_tokens_per_batch}"  # decides which part has what
    parts = [directory / f"{share}-{part:05d}-of-{count}.safetensors" for part in range(count)]
    own = range(ranks.rank(), count, ranks.world_size())
    missing = [part for part in own if read_part(parts[part]) is None]
    done = len(own) - len(missing)
    _log_left(title, split, done, [parts[part] for part in missing])
    with Bar(f"{title} {split}", len(own), unit="part", done=done, shown=runtime.progress_bar) as bar:
        for part in missing:
            columns = compute(packer.assemble(bins[part::count]))
            atomic_write(parts[part], save(columns, metadata={"sha256": _part_hash(columns)}))
            bar.advance(1)
    return _gather(parts) if ranks.is_main() else None


def join_columns(columns: Sequence[Columns]) -> Columns:
    """The columns of several micro-batches, one after another."""
    return {name: np.concatenate([of_batch[name] for of_batch in columns]) for name in columns[0]}


def remove_parts(directory: Path, split: str) -> None:
    """Remove the parts of a split, whose values are written elsewhere."""
    for path in directory.glob(f"{split}-*.safetensors"):
        path.unlink(missing_ok=True)


def with_room_for(runtime: RunConfig, tokens: Artifact, packing: Mapping[str, Any]) -> RunConfig:
    """The settings with a micro-batch that holds the longest row of these tokens."""
    stores = [store for _, store in open_splits(tokens)]
    lengths = [Packer(store, **packing).lengths(np.arange(store.num_rows)) for store in stores]
    longest = max(int(of_rows.max()) for of_rows in lengths)
    if longest <= runtime.max_tokens_per_batch:
        return runtime
    logger.info("%s: micro-batches of %d tokens, for the longest row", tokens.name, longest)
    return replace(runtime, max_tokens_per_batch=longest)


def read_part(path: Path) -> Columns | None:
    """A part's columns; None where it is not there, or not as it was written."""
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            written = file.metadata()["sha256"]
    except (FileNotFoundError, SafetensorError):
        return None
    return arrays if _part_hash(arrays) == written else None


def _log_left(title: str, split: str, done: int, missing: Sequence[Path]) -> None:
    """Log what a killed run has left, and what of that cannot be used."""
    if done:
        logger.info("%s: %s goes on, %d of %d parts are there", title, split, done, done + len(missing))
    for path in missing:
        if path.exists():
            own = {"own_rank": True}  # another rank looks at other parts
            logger.warning("%s: %s is not as it was written and is scored again", title, path, extra=own)


def _part_hash(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _gather(parts: list[Path]) -> Columns:
    """The columns of all parts, as soon as the ranks have made them."""
    loaded = [ranks.wait_until(lambda part=part: read_part(part), part) for part in parts]  # type: ignore[misc]
    return join_columns(loaded)
