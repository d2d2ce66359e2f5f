"""Stages `scores` and `selection`: the score of each token by the oracle, and the selected tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pyprefopt.data.batching.rule import Selection
from pyprefopt.data.batching.selection import mark_selected
from pyprefopt.data.store.segments import KINDS, SegmentStore, ValueStore
from pyprefopt.errors import DataError
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.stage import Artifact, Stage

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True, kw_only=True)
class Scores(Stage):
    """Token scores: log pi_oracle - log pi_base (SePO: each token's DPO reward without its beta, in the same order)."""

    name: str = "scores"
    data: Artifact
    oracle: Artifact  # log-probs
    base: Artifact  # log-probs

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write the scores. Facts: the oracle's health."""
        facts: dict[str, Any] = {}
        for split, store in open_splits(self.data):
            scores = flat_values(self.oracle.directory / split) - flat_values(self.base.directory / split)
            remedy = "look for NaN in the weights of oracle.path and base.path, or train the oracle less hard"
            require_finite(store, scores, split, what="the oracle's score", remedy=remedy)
            ValueStore.write(directory / split, store, scores, key="log pi_oracle - log pi_base")
            if split == "train":
                facts = oracle_health(store, scores, scale="oracle.loss.beta")
        return {"facts": facts}


def oracle_health(store: SegmentStore, scores: np.ndarray, *, scale: str) -> dict[str, dict[str, float]]:
    """The mean score of chosen and of rejected tokens, the oracle's log-prob less its beginning's.

    An oracle whose chosen mean is below 0 has lowered its chosen responses too, and then the highest scores of a chosen
    response are filler: a warning says so, and names the setting `scale` beside those of the oracle's training.
    """
    sides = response_sides(store).items()
    if not scores.any():
        logger.warning(
            "every token scores exactly 0: the oracle says what its beginning says, and the selection is by position "
            "alone; give an oracle that was trained"
        )
    facts = {side: {"mean_score": float(scores[tokens].mean(dtype=np.float64))} for side, tokens in sides}
    if round(facts["chosen"]["mean_score"], 3) < 0:
        logger.warning(
            "the oracle lowers its chosen responses too (mean token score %.3f): their highest scores may be "
            "filler; train it less hard (oracle.learning_rate, oracle.num_train_epochs), or raise %s",
            facts["chosen"]["mean_score"], scale,
        )  # fmt: skip
    return facts


@dataclass(frozen=True, kw_only=True)
class SelectedTokens(Stage):
    """The tokens of each response that `rule` selects: by scores, or by chance."""

    name: str = "selection"
    data: Artifact
    rule: Selection
    scores: Artifact | None  # of the oracle, or token rewards; None: by chance
    seed: int  # of chance; 0 where scores decide

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write the masks of selected tokens (SePO Eq. 25, or the other methods of `rule`).

        Facts: the share of tokens that is selected, and, where the data names the tokens that carry the preference
        (`chosen_planted`, `rejected_planted`), recall, precision and what chance would give.
        """
        import polars as pl

        facts: dict[str, Any] = {}
        for split, store in open_splits(self.data):
            table = store.table
            if self.scores is not None:
                scores = ValueStore.open(self.scores.directory / split).check(store).values
                table = table.append_column("scores", scores)
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives a frame)
            selected = mark_selected(frame, self.rule, seed=self.seed)["selected"]
            ValueStore.write(directory / split, store, selected, key="selection")
            if split == "train":
                planted = self.data.directory / "train_planted"
                facts = _selection_facts(store, flat_values(directory / split), planted)
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
