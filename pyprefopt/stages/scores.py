"""Stages `*_logps`, `scores` and `selection`: what models say of each token, once, and which tokens that selects."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from pyprefopt import ranks
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.batching.rule import Selection
from pyprefopt.data.batching.selection import mark_selected
from pyprefopt.data.store.segments import KINDS, SegmentStore, ValueStore, scatter_values
from pyprefopt.errors import ArtifactError, DataError
from pyprefopt.modeling.logps import LogpsModel, score_logps
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import split_names
from pyprefopt.stages.stage import Artifact, Stage, is_whole
from pyprefopt.storage.files import MANIFEST, atomic_write
from pyprefopt.types import PackedBatch

PART_BATCHES = 4  # micro-batches of a part, which a killed run scores again at most
LEAST_PARTS = 16  # where there are as many micro-batches, so that ranks have equal shares
PART_COLUMNS = ("lines", "lengths", "values")

logger = logging.getLogger("pyprefopt")


def logps_stage(data: Artifact, model_fingerprint: str, dtype: str) -> Stage:
    """Log-probs of one model: keyed by tokens, weights and precision, never by a name or a time."""
    return Stage("logps", {"dtype": dtype}, {"data": data.fingerprint, "model": model_fingerprint})


def build_logps(
    config: RunConfig, data: Artifact, model: LogpsModel, directory: Path, *, title: str, key: str
) -> dict[str, Any]:
    """Per-token log-probs of every response of `train` and `eval`; the ranks score parts in turn.

    They hand over through files, not through a collective. Parts are the same for any number of ranks, and those that
    a killed run left are used again where they are as they were written.
    """
    for split in split_names(data.directory):
        store = SegmentStore.open(data.directory / split)
        if _scored(directory / split, store, key):
            continue
        packer = Packer(store, layout=config.layout, budget_names=("max_tokens_per_batch", "max_tokens"))
        bins = packer.plan(max_tokens=config.max_tokens_per_batch)
        count = min(len(bins), max(LEAST_PARTS, -(-len(bins) // PART_BATCHES)))
        share = f"{split}-{config.layout}-{config.max_tokens_per_batch}"  # decides which part has what
        parts = [directory / f"{share}-{part:05d}-of-{count}.safetensors" for part in range(count)]
        own = range(ranks.rank(), count, ranks.world_size())
        missing = [part for part in own if _read_part(parts[part]) is None]
        done = len(own) - len(missing)
        _tell_left(title, split, done, [parts[part] for part in missing])
        quiet = not ranks.is_main()
        for part in tqdm(missing, f"{title} {split}", len(own), unit="part", initial=done, disable=quiet):
            scored = _score_part(model, packer.assemble(bins[part::count]))
            atomic_write(parts[part], save(scored, metadata={"sha256": _part_hash(scored)}))
        if ranks.is_main():
            lines, lengths, values = _gather(parts)
            ValueStore.write(directory / split, store, scatter_values(store, lines, lengths, values), key=key)
            for path in directory.glob(f"{split}-*.safetensors"):
                path.unlink(missing_ok=True)
    return {}


def _tell_left(title: str, split: str, done: int, missing: Sequence[Path]) -> None:
    """Say what a killed run has left, and what of that cannot be used."""
    if done:
        logger.info("%s: %s goes on, %d of %d parts are there", title, split, done, done + len(missing))
    for path in missing:
        if path.exists():
            logger.warning("%s: %s is not as it was written and is scored again", title, path)


def _scored(directory: Path, store: SegmentStore, key: str) -> bool:
    """Whether a killed run has finished this split, for these tokens and this key."""
    if not (directory / MANIFEST).exists():
        return False
    try:
        ValueStore.open(directory).check(store, key=key)
    except ArtifactError:
        return False
    return is_whole(directory)


def _score_part(model: LogpsModel, batches: Sequence[PackedBatch]) -> dict[str, np.ndarray]:
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


def scores_stage(oracle_logps: Artifact, base_logps: Artifact) -> Stage:
    """Token scores: log pi_oracle - log pi_base."""
    return Stage("scores", {}, {"oracle_logps": oracle_logps.fingerprint, "base_logps": base_logps.fingerprint})


def build_scores(data: Artifact, oracle: Artifact, base: Artifact, directory: Path) -> dict[str, Any]:
    """Write the scores (SePO: the DPO reward of each token without its beta; the ranking is the same).

    Facts: the mean score of chosen and of rejected tokens. An oracle whose chosen mean is far below 0 has lowered
    its chosen responses too, and then the highest scores of a chosen response are filler.
    """
    facts: dict[str, Any] = {"chosen": {}, "rejected": {}}
    for split in split_names(data.directory):
        store = SegmentStore.open(data.directory / split)
        scores = flat_values(oracle.directory / split) - flat_values(base.directory / split)
        remedy = "look for NaN in the weights of oracle.path and base.path, or train the oracle less hard"
        require_finite(store, scores, split, what="the oracle's score", remedy=remedy)
        ValueStore.write(directory / split, store, scores, key="log pi_oracle - log pi_base")
        if split == "train":
            for side, tokens in response_sides(store).items():
                facts[side]["mean_score"] = float(scores[tokens].mean(dtype=np.float64))
    if facts["chosen"]["mean_score"] < 0:
        logger.warning(
            "the oracle lowers its chosen responses too (mean token score %.3f): their highest scores may be filler; "
            "train it less hard (oracle.learning_rate, oracle.num_train_epochs), or raise oracle.loss.beta",
            facts["chosen"]["mean_score"],
        )
    return {"facts": facts}


def selection_stage(rule: Selection, data: Artifact, scores: Artifact | None, seed: int) -> Stage:
    """Tokens of each response by the scores, or (without them) by chance."""
    if scores is None:
        return Stage("selection", asdict(rule), {"data": data.fingerprint}, seed=seed)
    return Stage("selection", asdict(rule), {"scores": scores.fingerprint})


def build_selection(
    rule: Selection, data: Artifact, scores: Artifact | None, seed: int, directory: Path
) -> dict[str, Any]:
    """Write the masks of selected tokens (SePO Eq. 25, or the other methods of `select_tokens`).

    Facts: the share of tokens that is selected, and, where the data says which tokens carry the preference
    (`chosen_planted`, `rejected_planted`), recall, precision and what chance would give.
    """
    import polars as pl

    facts: dict[str, Any] = {}
    for split in split_names(data.directory):
        store = SegmentStore.open(data.directory / split)
        table = store.table
        if scores is not None:
            table = table.append_column("scores", ValueStore.open(scores.directory / split).check(store).values)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives a frame)
        selected = mark_selected(frame, rule, seed=seed)["selected"]
        ValueStore.write(directory / split, store, selected, key="selection")
        if split == "train":
            facts = _selection_facts(store, flat_values(directory / split), data.directory / "train_planted")
    return {"facts": facts}


def _selection_facts(store: SegmentStore, selected: np.ndarray, planted_store: Path) -> dict[str, Any]:
    planted = flat_values(planted_store) if planted_store.exists() else None
    facts: dict[str, Any] = {}
    for side, tokens in response_sides(store).items():
        ours = selected[tokens]
        facts[side] = {"selected_share": float(ours.mean())}
        if planted is not None:
            truth = planted[tokens]
            hits = float((ours & truth).sum())
            facts[side] |= {
                "planted_recall": hits / max(1.0, float(truth.sum())),
                "planted_recall_by_chance": float(ours.mean()),
                "planted_precision": hits / max(1.0, float(ours.sum())),
                "planted_precision_by_chance": float(truth.mean()),
            }
    return facts


def flat_values(directory: Path) -> np.ndarray:
    """All values of a store, one response after another."""
    values = pc.list_flatten(ValueStore.open(directory).values)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def require_finite(store: SegmentStore, scores: np.ndarray, split: str, *, what: str, remedy: str) -> None:
    """DataError naming split, row and token of the first score that is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if not bad.size:
        return
    line = int(np.searchsorted(store.response_offsets, bad[0], side="right")) - 1
    row, token = store.table["row"][line].as_py(), int(bad[0] - store.response_offsets[line])
    raise DataError(
        f"{split} row {row}, {KINDS[store.kinds[line]]}, token {token}: {what} must be finite, got "
        f"{scores[bad[0]]} ({bad.size} such tokens); {remedy}"
    )


def response_sides(store: SegmentStore) -> dict[str, np.ndarray]:
    """Which of the flat values are the chosen (rejected) responses' own tokens."""
    kinds = np.repeat(store.kinds, np.diff(store.response_offsets))
    return {side: (kinds == KINDS.index(side)) & store.response_mask for side in ("chosen", "rejected")}
