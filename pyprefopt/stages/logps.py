"""Stage `logps`: the log-prob that a model gives each token, once; the ranks score parts in turn."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pyprefopt import ranks
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store.segments import SegmentStore, ValueStore, scatter_values
from pyprefopt.errors import ArtifactError
from pyprefopt.log import Bar
from pyprefopt.modeling.logps import score_logps
from pyprefopt.modeling.packed_model import PackedModel
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.models import Source, open_model, packing_for
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.training.engine import init_distributed
from pyprefopt.types import PackedBatch

if TYPE_CHECKING:
    from torch import Tensor

Score = Callable[[PackedBatch], "Mapping[str, Tensor]"]  # of a batch on the model's device
PART_BATCHES = 4  # micro-batches of a part, which a killed run scores again at most
LEAST_PARTS = 16  # where there are as many micro-batches, so that ranks have equal shares

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True, kw_only=True)
class Logps(Stage):
    """Log-probs of one model: keyed by tokens, weights and precision, never by a label or a time."""

    name: str = "logps"
    data: Artifact  # the run's tokens, or a model's own
    model: Source
    dtype: str = "float32"

    collective = True

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Per-token log-probs of every response of `train` and `eval`."""
        model = open_model(self.model, self.data, runtime, dtype=self.dtype).to(init_distributed())
        score_tokens(self, self.data, [model], lambda batch: {"values": score_logps(model, batch)}, directory, runtime)
        return {}


def score_tokens(
    stage: Stage, data: Artifact, models: Sequence[PackedModel], score: Score, directory: Path, runtime: RunConfig
) -> None:
    """Write what `score` gives each token of `train` and `eval`, as stores of values.

    The ranks hand over through files, not through a collective. Parts are the same for any number of ranks, and those
    that a killed run left are used again where they are as they were written.

    Args:
        stage: whose key the stores get.
        data: the tokens.
        models: that score; documents are laid out as all of them can read them.
        score: a batch -> name -> [M]. The values of the name `values` are in the folder SPLIT, others in SPLIT_NAME.
        directory: the stage's folder.
        runtime: the run's settings.
    """
    packings = [packing_for(model, data, runtime) for model in models]
    packing = max(packings, key=lambda options: (options["whole"], options["layout"] == "separate"))
    if "longest_row" in data.manifest:  # tokens of the model's own, whose number no setting bounds
        runtime = _with_room_for(runtime, data, packing)
    device = next(models[0].parameters()).device

    def compute(batch: PackedBatch) -> dict[str, np.ndarray]:
        return {name: values.float().cpu().numpy() for name, values in score(batch.to(device)).items()}

    for split, store in open_splits(data):
        if not _scored(directory / split, store, stage.key):
            _score_split(stage, compute, store, directory, split, runtime, packing)


def _score_split(
    stage: Stage, compute: Callable[[PackedBatch], dict[str, np.ndarray]], store: SegmentStore, directory: Path,
    split: str, runtime: RunConfig, packing: dict[str, Any],
) -> None:  # fmt: skip
    packer = Packer(store, budget_names=("max_tokens_per_batch", "max_tokens"), **packing)
    bins = packer.plan(max_tokens=runtime.max_tokens_per_batch)
    count = min(len(bins), max(LEAST_PARTS, -(-len(bins) // PART_BATCHES)))
    share = f"{split}-{packer.layout}-{runtime.max_tokens_per_batch}"  # decides which part has what
    parts = [directory / f"{share}-{part:05d}-of-{count}.safetensors" for part in range(count)]
    own = range(ranks.rank(), count, ranks.world_size())
    missing = [part for part in own if _read_part(parts[part]) is None]
    done = len(own) - len(missing)
    _log_left(stage.title, split, done, [parts[part] for part in missing])
    with Bar(f"{stage.title} {split}", len(own), unit="part", done=done, shown=runtime.progress_bar) as bar:
        for part in missing:
            scored = score_part(compute, packer.assemble(bins[part::count]))
            atomic_write(parts[part], save(scored, metadata={"sha256": _part_hash(scored)}))
            bar.advance(1)
    if ranks.is_main():
        columns = _gather(parts)
        lines, lengths = columns.pop("lines"), columns.pop("lengths")
        for name in sorted(columns, key="values".__eq__):  # the folder by which a split is known to be done comes last
            target = directory / (split if name == "values" else f"{split}_{name}")
            ValueStore.write(target, store, scatter_values(store, lines, lengths, columns[name]), key=stage.key)
        for path in directory.glob(f"{split}-*.safetensors"):
            path.unlink(missing_ok=True)


def _with_room_for(runtime: RunConfig, tokens: Artifact, packing: dict[str, Any]) -> RunConfig:
    """The settings with a micro-batch that holds the longest row of these tokens."""
    stores = [store for _, store in open_splits(tokens)]
    lengths = [Packer(store, **packing).lengths(np.arange(store.num_rows)) for store in stores]
    longest = max(int(of_rows.max()) for of_rows in lengths)
    if longest <= runtime.max_tokens_per_batch:
        return runtime
    logger.info("%s: micro-batches of %d tokens, for the longest row", tokens.name, longest)
    return replace(runtime, max_tokens_per_batch=longest)


def _log_left(title: str, split: str, done: int, missing: Sequence[Path]) -> None:
    """Log what a killed run has left, and what of that cannot be used."""
    if done:
        logger.info("%s: %s goes on, %d of %d parts are there", title, split, done, done + len(missing))
    for path in missing:
        if path.exists():
            own = {"own_rank": True}  # another rank looks at other parts
            logger.warning("%s: %s is not as it was written and is scored again", title, path, extra=own)


def _scored(directory: Path, store: SegmentStore, key: str) -> bool:
    """Whether a killed run has finished this split, for these tokens and this key."""
    try:
        ValueStore.open(directory, verify=True).check(store, key=key)
    except ArtifactError:
        return False
    return True


def score_part(
    compute: Callable[[PackedBatch], dict[str, np.ndarray]], batches: Sequence[PackedBatch]
) -> dict[str, np.ndarray]:
    """The values of a part: which lines of the segments, how many tokens each, and what was computed, in one row."""
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in batches:
        columns["lines"].append(np.asarray(batch.response_line))
        columns["lengths"].append(np.asarray(batch.scored_length).astype(np.int64))
        for name, values in compute(batch).items():
            columns[name].append(values)
    return {name: np.concatenate(arrays) for name, arrays in columns.items()}


def _part_hash(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _read_part(path: Path) -> dict[str, np.ndarray] | None:
    """A part's columns; None where it is not there, or not as it was written."""
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            written = file.metadata()["sha256"]
    except (FileNotFoundError, SafetensorError):
        return None
    return arrays if _part_hash(arrays) == written else None


def _gather(parts: list[Path]) -> dict[str, np.ndarray]:
    """The columns of all parts, as soon as the ranks have made them."""
    loaded = [ranks.wait_until(lambda part=part: _read_part(part), part) for part in parts]  # type: ignore[misc]
    return {name: np.concatenate([arrays[name] for arrays in loaded]) for name in loaded[0]}
