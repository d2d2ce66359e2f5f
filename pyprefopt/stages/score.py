"""Stages `*_logps`, `scores` and `selection`: what models say of each token, once, and which tokens that selects."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from safetensors.numpy import load_file, save
from tqdm import tqdm

from pyprefopt.data.atomic import atomic_write
from pyprefopt.data.loader import StepLoader
from pyprefopt.data.pack import Packer
from pyprefopt.data.select import select_tokens, used_settings
from pyprefopt.data.store import KINDS, SegmentStore, ValueStore, scatter_values
from pyprefopt.errors import DataError
from pyprefopt.modeling.logps import LogpsModel, score_logps
from pyprefopt.stages.artifact import Artifact, Stage
from pyprefopt.stages.data import split_names
from pyprefopt.train import dist
from pyprefopt.train.config import RunConfig, SelectionConfig

logger = logging.getLogger("pyprefopt")


def logps_stage(data: Artifact, model_fingerprint: str, dtype: str) -> Stage:
    """Log-probs of one model: keyed by tokens, weights and precision, never by a name or a time."""
    return Stage("logps", {"dtype": dtype}, {"data": data.fingerprint, "model": model_fingerprint})


def build_logps(
    config: RunConfig, data: Artifact, model: LogpsModel, directory: Path, *, title: str, key: str
) -> dict[str, Any]:
    """Per-token log-probs of every response of `train` and `eval`; each rank scores its share.

    The ranks hand over through files, not through a collective, and a part that a killed run left is used again.
    """
    for split in split_names(data.directory):
        store = SegmentStore.open(data.directory / split)
        world = dist.world_size()
        share = f"{config.layout}-{config.max_tokens_per_batch}"  # decides which rank scores what
        parts = [directory / f"{split}-{share}-{rank}-of-{world}.safetensors" for rank in range(world)]
        if not parts[dist.rank()].exists():
            atomic_write(parts[dist.rank()], save(_score_share(config, store, model, f"{title} {split}")))
        if dist.is_main():
            lines, lengths, values = _gather(parts)
            ValueStore.write(directory / split, store, scatter_values(store, lines, lengths, values), key=key)
            for part in directory.glob(f"{split}-*.safetensors"):
                part.unlink(missing_ok=True)
    return {}


def _score_share(config: RunConfig, store: SegmentStore, model: LogpsModel, title: str) -> dict[str, np.ndarray]:
    """This rank's log-probs: which lines of the segments, how many tokens each, the values one after another."""
    packer = Packer(store, layout=config.layout, budget_names=("max_tokens_per_batch", "max_tokens"))
    loader = StepLoader(
        packer,
        num_groups=store.num_rows,
        global_batch_size=config.global_batch_size,
        max_tokens=config.max_tokens_per_batch,
        seed=config.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
    )
    device = next(model.parameters()).device
    columns: dict[str, list[np.ndarray]] = {"lines": [], "lengths": [], "values": []}
    for batch in tqdm(loader.scan(), desc=title, unit="batch", disable=not dist.is_main()):
        columns["lines"].append(batch.response_line.numpy())
        columns["lengths"].append(batch.scored_length.numpy().astype(np.int64))
        columns["values"].append(score_logps(model, batch.to(device)).float().cpu().numpy())
    kinds = {"lines": np.int64, "lengths": np.int64, "values": np.float32}
    return {name: np.concatenate([np.empty(0, kinds[name]), *arrays]) for name, arrays in columns.items()}


def _gather(parts: list[Path]) -> tuple[np.ndarray, ...]:
    while not all(part.exists() for part in parts):
        time.sleep(0.1)
    loaded = [load_file(part) for part in parts]
    return tuple(np.concatenate([arrays[name] for arrays in loaded]) for name in ("lines", "lengths", "values"))


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


def selection_stage(rule: SelectionConfig, data: Artifact, scores: Artifact | None, seed: int) -> Stage:
    """Tokens of each response by the scores, or (without them) by chance."""
    if scores is None:
        return Stage("selection", asdict(rule), {"data": data.fingerprint}, seed=seed)
    return Stage("selection", asdict(rule), {"scores": scores.fingerprint})


def build_selection(
    rule: SelectionConfig, data: Artifact, scores: Artifact | None, seed: int, directory: Path
) -> dict[str, Any]:
    """Write the masks of selected tokens (SePO Eq. 25, or the other methods of `select_tokens`).

    Facts: the share of tokens that is selected, and, where the data says which tokens carry the preference
    (`chosen_planted`, `rejected_planted`), recall, precision and what chance would give.
    """
    import polars as pl

    facts: dict[str, Any] = {}
    settings = used_settings(**asdict(rule), seed=seed)
    for split in split_names(data.directory):
        store = SegmentStore.open(data.directory / split)
        table = store.table
        if scores is not None:
            table = table.append_column("scores", ValueStore.open(scores.directory / split).check(store).values)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives a frame)
        selected = select_tokens(frame, **settings)["selected"]
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
