"""Stages `rewards` and `column`: a number per response token, made once by a provider and kept with the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pyprefopt.data.store.segments import USER_WEIGHTS, SegmentStore, ValueStore
from pyprefopt.errors import ConfigError, DataError, did_you_mean
from pyprefopt.rewards import DIRECTIONS, Reward, SimPOReward, Tokens, finished, seeded_normal
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import TEST_SPLITS, open_splits
from pyprefopt.stages.scores import flat_values, oracle_health, require_finite, response_sides
from pyprefopt.stages.sources import cuts_texts, source_of, texts_of
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.types import unkeyed
from pyprefopt.version import __version__

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

SPLITS = ("train", *TEST_SPLITS)  # a split's place is its stream of noise


@dataclass(frozen=True, kw_only=True)
class Rewards(Stage):
    """Token rewards of one provider: keyed by its formula and the content of what it reads."""

    name: str = "rewards"
    data: Artifact
    provider: Reward
    columns: Mapping[str, Artifact]  # what the provider reads, by its names
    oracle: tuple[Artifact, Artifact] | None = unkeyed(None)  # log-probs of the run's oracle and of its beginning

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write the rewards of every split. Facts: mean and deviation by side, and the oracle's health."""
        facts: dict[str, Any] = {}
        provider, seed = self.provider, self.provider.noise_seed
        for split, store in open_splits(self.data):
            tokens, stream = tokens_of(store), 2 * SPLITS.index(split)
            columns, count = _columns(store, tokens, self.columns, split), len(tokens.mask)
            if "noise" in provider.reads:
                columns["noise"] = seeded_normal(count, seed, stream + 1)
            noise = seeded_normal(count, seed, stream) if provider.noise_std > 0 else None
            raw = provider.values(columns, tokens)
            values = finished(raw, tokens, transform=provider.transform, noise_std=provider.noise_std, noise=noise)
            flat = values.float().numpy()
            remedy = "look for NaN in the weights of the models that rewards reads, and in the data's column"
            require_finite(store, flat, split, what="the token reward", remedy=remedy)
            ValueStore.write(directory / split, store, flat, key=f"rewards {provider.name}")
            if split == "train":
                facts = {side: _spread(flat[own]) for side, own in response_sides(store).items()}
                for side, health in self._health(store).items():
                    facts[side] |= health
        return {"facts": facts}

    def _health(self, store: SegmentStore) -> dict[str, dict[str, float]]:
        """Of the oracle behind the rewards, where there is one."""
        if self.oracle is None:
            return {}
        after, before = (flat_values(logps.directory / "train") for logps in self.oracle)
        simpo = isinstance(self.provider, SimPOReward)
        return oracle_health(store, after - before, scale="rewards.beta" if simpo else "oracle.loss.beta")


@dataclass(frozen=True, kw_only=True)
class DataColumn(Stage):
    """Token rewards that the data brings, on the policy's tokens."""

    name: str = "column"
    data: Artifact
    rows: str  # hash of the files that the values come from
    column: str
    version: str = __version__  # another one may read them otherwise

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Write `chosen_NAME` and `rejected_NAME` of every split as values of its tokens.

        A value is given for each token of the content, or for spans of characters; what is not covered, and what the
        template wrote, gets 0. Rules are those of user weights (`data.weights`), but a reward may be negative.

        Raises:
            ConfigError: the data was prepared without offsets.
            DataError: a column is missing or of another type, or a row breaks a rule.
        """
        import polars as pl

        from pyprefopt.data.tokenization.token_columns import CUT_COUNTS

        for split, store in open_splits(self.data):
            if "starts" not in store.table.column_names:
                raise ConfigError("rewards column needs the tokens' places in the text; prepare the data with offsets")
            segments = pl.from_arrow(store.table)
            assert isinstance(segments, pl.DataFrame)  # noqa: S101  (a table gives a frame)
            source = source_of(runtime, split)
            where = f"{source.path}, {split}"
            sides = [f"{side}_{self.column}" for side in ("chosen", "rejected")]
            rows = texts_of(runtime, split, store, [*sides, *CUT_COUNTS])
            _check_columns(rows, sides, source.rows.fields, where)
            values = _attach(segments, rows, self.column, where, by_texts=cuts_texts(runtime, split))
            ValueStore.write(directory / split, store, values, key=f"column {self.column}")
        return {}


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


def _check_columns(rows: pl.DataFrame, columns: Sequence[str], fields: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in rows.columns:
            raise DataError(
                f"{where}: the rows have no column '{column}'{did_you_mean(column, fields)}; rewards column "
                "takes chosen_NAME and rejected_NAME, with rewards.column NAME"
            )


def _attach(segments: pl.DataFrame, rows: pl.DataFrame, name: str, where: str, *, by_texts: bool) -> pl.Series:
    """The rewards of each token."""
    from pyprefopt.data.tokenization.token_columns import TokenColumn, attach_weights

    kind = TokenColumn(name, noun="reward", default=0.0, signed=True)
    try:
        rewarded, rejects = attach_weights(segments, rows, kind, by_texts=by_texts)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if rejects.height:
        first = rejects.row(0, named=True)
        raise DataError(
            f"{where}, row {first['row']}, {first['field']}: {first['rule']}, got {first['value']} ({rejects.height} "
            f"such rows); {first['remedy']} (on_error skip leaves out no row for its rewards)"
        )
    return rewarded[USER_WEIGHTS]
