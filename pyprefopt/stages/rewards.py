"""Stage `rewards`: a number per response token, made once by a provider and kept with the data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.rewards import DIRECTIONS, Tokens, finished, seeded_normal
from pyprefopt.stages.data import split_names
from pyprefopt.stages.scores import flat_values, require_finite, response_sides
from pyprefopt.stages.stage import Artifact, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pyprefopt.rewards import Reward

SPLITS = ("train", "eval")  # a split's place is its stream of noise
SOURCES = ("strong", "weak", "model", "better_prompt", "worse_prompt")  # files: their content is among the inputs


def rewards_stage(rewards: Reward, data: Artifact, inputs: Mapping[str, Artifact]) -> Stage:
    """Keyed by the formula's settings and the content of what it reads."""
    settings = {name: value for name, value in asdict(rewards).items() if name not in SOURCES}
    given = {name: artifact.fingerprint for name, artifact in inputs.items()}
    return Stage("rewards", settings, {"data": data.fingerprint, **given})


def build_rewards(rewards: Reward, data: Artifact, inputs: Mapping[str, Artifact], directory: Path) -> dict[str, Any]:
    """Write the rewards of every split. Facts: their mean and standard deviation by side, of the training pairs."""
    facts: dict[str, Any] = {}
    for split in split_names(data.directory):
        store = SegmentStore.open(data.directory / split)
        tokens, stream = tokens_of(store), 2 * SPLITS.index(split)
        columns = _columns(store, tokens, inputs, split)
        count, seed = len(tokens.mask), rewards.noise_seed
        if "noise" in rewards.reads:
            columns["noise"] = seeded_normal(count, seed, stream + 1)
        noise = seeded_normal(count, seed, stream) if rewards.noise_std > 0 else None
        raw = rewards.values(columns, tokens)
        values = finished(raw, tokens, transform=rewards.transform, noise_std=rewards.noise_std, noise=noise)
        flat = values.float().numpy()
        remedy = "look for NaN in the weights of the models that rewards reads, and in the data's column"
        require_finite(store, flat, split, what="the token reward", remedy=remedy)
        ValueStore.write(directory / split, store, flat, key=f"rewards {rewards.name}")
        if split == "train":
            facts = {side: _spread(flat[own]) for side, own in response_sides(store).items()}
    return {"facts": facts}


def tokens_of(store: SegmentStore) -> Tokens:
    """What formulas may ask of a store's response tokens."""
    mask, offsets = store.response_mask, store.response_offsets
    counts = np.diff(np.concatenate([[0], np.cumsum(mask)])[offsets])
    lengths = np.repeat(counts, np.diff(offsets)).astype(np.float32)
    template = np.zeros(len(mask), np.bool_)
    if "starts" in store.table.column_names:
        starts = pc.list_flatten(store.table["starts"].filter(pa.array(store.segments != 0)))
        template = np.asarray(starts.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
    return Tokens(torch.from_numpy(mask.copy()), torch.from_numpy(lengths), torch.from_numpy(template.copy()))


def _columns(store: SegmentStore, tokens: Tokens, inputs: Mapping[str, Artifact], split: str) -> dict[str, Tensor]:
    """The inputs' values by name, [T] f32 each."""
    revised = {name: artifact for name, artifact in inputs.items() if name in DIRECTIONS}
    plain = {name: artifact for name, artifact in inputs.items() if name not in revised}
    columns = {name: torch.tensor(flat_values(artifact.directory / split)) for name, artifact in plain.items()}
    if revised:
        columns |= _revised(store, revised, split, len(tokens.mask))
    return columns


def _revised(store: SegmentStore, revised: Mapping[str, Artifact], split: str, count: int) -> dict[str, Tensor]:
    """Log-probs under the revision prompts, at the place of the response; 0 under all where one left it out."""
    columns, everywhere = {}, np.ones(count, np.bool_)
    for name, artifact in revised.items():
        table = ValueStore.open(artifact.directory / split).table
        lines = table["row"].filter(pc.equal(table["segment"], 1)).to_numpy()
        there = np.zeros(store.num_lines, np.bool_)
        there[lines] = True
        where = np.repeat(there, np.diff(store.response_offsets))
        columns[name] = np.zeros(count, np.float32)
        columns[name][where] = flat_values(artifact.directory / split)
        everywhere &= where
    return {name: torch.from_numpy(np.where(everywhere, values, np.float32(0))) for name, values in columns.items()}


def _spread(values: np.ndarray) -> dict[str, float]:
    wide = values.astype(np.float64)
    return {"mean_reward": float(wide.mean()), "std_reward": float(wide.std())}
