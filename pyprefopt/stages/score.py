"""Stages `*_logps`, `scores` and `selection`: what models say of each token, once, and which tokens that selects."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save
from tqdm import tqdm

from pyprefopt.data.atomic import atomic_write
from pyprefopt.data.loader import StepLoader
from pyprefopt.data.pack import Packer
from pyprefopt.data.select import top_k_mask
from pyprefopt.data.store import SegmentStore, ValueStore, scatter_values
from pyprefopt.modeling.logps import LogpsModel, score_logps
from pyprefopt.stages.artifact import Artifact, Stage
from pyprefopt.train import dist
from pyprefopt.train.config import RunConfig, SelectionConfig

SPLITS = ("train", "eval")


def logps_stage(data: Artifact, model_fingerprint: str, dtype: str) -> Stage:
    """Log-probs of one model: keyed by tokens, weights and precision, never by a name or a time."""
    return Stage("logps", {"dtype": dtype}, {"data": data.fingerprint, "model": model_fingerprint})


def build_logps(config: RunConfig, data: Artifact, model: LogpsModel, directory: Path, title: str) -> dict[str, Any]:
    """Per-token log-probs of every response of `train` and `eval`; each rank scores its share.

    The ranks hand over through files, not through a collective, and a part that a killed run left is used again.
    """
    for split in SPLITS:
        store = SegmentStore.open(data.directory / split)
        world = dist.world_size()
        parts = [directory / f"{split}-{rank}-of-{world}.safetensors" for rank in range(world)]
        if not parts[dist.rank()].exists():
            atomic_write(parts[dist.rank()], save(_score_share(config, store, model, f"{title} {split}")))
        if dist.is_main():
            lines, lengths, values = _gather(parts)
            ValueStore.write(directory / split, store, scatter_values(store, lines, lengths, values))
            for part in parts:
                part.unlink()
    return {}


def _score_share(config: RunConfig, store: SegmentStore, model: LogpsModel, title: str) -> dict[str, np.ndarray]:
    """This rank's log-probs: which lines of the segments, how many tokens each, the values one after another."""
    packer = Packer(store, layout=config.layout)
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
    facts: dict[str, Any] = {}
    for split in SPLITS:
        store = SegmentStore.open(data.directory / split)
        ours, theirs = (ValueStore.open(a.directory / split).flat() for a in (oracle, base))
        ValueStore.write(directory / split, store, ours - theirs)
        if split == "train":
            mask = store.flat("mask")
            for kind in ("chosen", "rejected"):
                facts[f"mean_score_{kind}"] = float((ours - theirs)[mask & store.kind_of_tokens(kind)].mean())
    return {"facts": facts}


def selection_stage(rule: SelectionConfig, scores: Artifact) -> Stage:
    """Top-k% of each response by the scores."""
    return Stage("selection", vars(rule) | {}, {"scores": scores.fingerprint})


def build_selection(config: RunConfig, data: Artifact, scores: Artifact, directory: Path) -> dict[str, Any]:
    """Write the masks of selected tokens (SePO Eq. 25).

    Facts: the share of tokens that is selected, and, where the data says which tokens carry the preference
    (`chosen_planted`, `rejected_planted`), recall, precision and what chance would give.
    """
    rule = config.selection
    facts: dict[str, Any] = {}
    for split in SPLITS:
        store = SegmentStore.open(data.directory / split)
        values = ValueStore.open(scores.directory / split)
        selected = select_lines(store, values, rule)
        ValueStore.write(directory / split, store, selected)
        planted = data.directory / f"{split}_planted"
        if split == "train":
            facts = selection_facts(store, selected, ValueStore.open(planted) if planted.exists() else None)
    return {"facts": facts}
