"""Stage `logps`: the log-prob that a model gives each token, once; the ranks score parts in turn."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pyprefopt import ranks
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store.segments import SegmentStore, ValueStore, scatter_values
from pyprefopt.errors import ArtifactError
from pyprefopt.log import Bar
from pyprefopt.modeling.logps import LogpsModel, score_logps
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.models import Source, open_model, packing_for
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.training.engine import init_distributed
from pyprefopt.types import PackedBatch

PART_BATCHES = 4  # micro-batches of a part, which a killed run scores again at most
LEAST_PARTS = 16  # where there are as many micro-batches, so that ranks have equal shares
PART_COLUMNS = ("lines", "lengths", "values")

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
        """Per-token log-probs of every response of `train` and `eval`.

        The ranks hand over through files, not through a collective. Parts are the same for any number of ranks, and
        those that a killed run left are used again where they are as they were written.
        """
        model = open_model(self.model, self.data, runtime, dtype=self.dtype).to(init_distributed())
        packing = packing_for(model, self.data, runtime)
        if "longest_row" in self.data.manifest:  # tokens of the model's own, whose number no setting bounds
            runtime = _with_room_for(runtime, self.data, packing)
        for split, store in open_splits(self.data):
            if not _scored(directory / split, store, self.key):
                self._score(model, store, directory, split, runtime, packing)
        return {}

    def _score(
        self, model: LogpsModel, store: SegmentStore, directory: Path, split: str, runtime: RunConfig,
        packing: dict[str, Any],
    ) -> None:  # fmt: skip
        packer = Packer(store, budget_names=("max_tokens_per_batch", "max_tokens"), **packing)
        bins = packer.plan(max_tokens=runtime.max_tokens_per_batch)
        count = min(len(bins), max(LEAST_PARTS, -(-len(bins) // PART_BATCHES)))
        share = f"{split}-{packer.layout}-{runtime.max_tokens_per_batch}"  # decides which part has what
        parts = [directory / f"{share}-{part:05d}-of-{count}.safetensors" for part in range(count)]
        own = range(ranks.rank(), count, ranks.world_size())
        missing = [part for part in own if _read_part(parts[part]) is None]
        done = len(own) - len(missing)
        _log_left(self.title, split, done, [parts[part] for part in missing])
        with Bar(f"{self.title} {split}", len(own), unit="part", done=done, shown=runtime.progress_bar) as bar:
            for part in missing:
                scored = score_part(model, packer.assemble(bins[part::count]))
                atomic_write(parts[part], save(scored, metadata={"sha256": _part_hash(scored)}))
                bar.advance(1)
        if ranks.is_main():
            lines, lengths, values = _gather(parts)
            ValueStore.write(directory / split, store, scatter_values(store, lines, lengths, values), key=self.key)
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


def score_part(model: LogpsModel, batches: Sequence[PackedBatch]) -> dict[str, np.ndarray]:
    """Log-probs of a part: which lines of the segments, how many tokens each, the values one after another."""
    device = next(model.parameters()).device
    columns: dict[str, list[np.ndarray]] = {name: [] for name in PART_COLUMNS}
    for batch in batches:
        columns["lines"].append(np.asarray(batch.response_line))
        columns["lengths"].append(np.asarray(batch.scored_length).astype(np.int64))
        columns["values"].append(score_logps(model, batch.to(device)).float().cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in columns.items()}


def _part_hash(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in PART_COLUMNS:
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _read_part(path: Path) -> dict[str, np.ndarray] | None:
    """A part's columns; None where it is not there, or not as it was written."""
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in PART_COLUMNS}
            written = file.metadata()["sha256"]
    except (FileNotFoundError, SafetensorError):
        return None
    return arrays if _part_hash(arrays) == written else None


def _gather(parts: list[Path]) -> tuple[np.ndarray, ...]:
    """The columns of all parts, as soon as the ranks have made them."""
    loaded = [ranks.wait_until(lambda part=part: _read_part(part), part) for part in parts]  # type: ignore[misc]
    return tuple(np.concatenate([arrays[name] for arrays in loaded]) for name in PART_COLUMNS)
