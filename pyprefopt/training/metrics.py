"""Metrics with TRL's names, as global sums over global counts: exact for any number of ranks and micro-batches."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyprefopt.losses import count_units, weighted_sums
from pyprefopt.storage.files import append, atomic_write
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.losses import Method
    from pyprefopt.types import PackedBatch

Metrics = dict[str, float]


class Margins(NamedTuple):
    """What each pair of a split got, chosen less rejected; NaN where it was not computed."""

    rows: NDArray[np.int64]  # [pairs], ascending: the input rows
    reward: NDArray[np.float64]  # [pairs], of the method's rewards
    ranking: NDArray[np.float64]  # [pairs], of the mean log-probs, nats a token; of a reward model the scores


# Place in a tally -> what is summed. `pairs` and `units` are the counts that the sums are divided by.
TALLY = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
    "logps/rejected", "units", "pairs", "num_tokens", "num_scored_tokens", "weights/negative", "num_computed_tokens",
    "num_useful_tokens", "num_useful_context", "entropy", "num_weightless",
)  # fmt: skip
PAIR_MEANS = TALLY[1:7]
TOKEN_MEANS = ("weights/negative", "entropy")
FROM_LOGPS = ("logps/chosen", "logps/rejected", *TOKEN_MEANS)


def tally(
    method: Method, batch: PackedBatch, losses: Tensor, rewards: Tensor, given: Tensor | Outputs, weights: Tensor | None
) -> Tensor:
    """Sum over one micro-batch what its metrics are made of.

    `rewards/accuracies` counts chosen > rejected strictly, as TRL does: a tie is a miss. `logps/*` are plain sums over
    a response's scored tokens, `weights/negative` counts those that the margin turns round, `num_weightless` groups
    without any. A zero-loss batch counts no tokens but computed ones.

    Args:
        method: the method that gave losses, rewards and weights.
        batch: the micro-batch.
        losses: [units].
        rewards: [R].
        given: what the model gave: log-probs [M], or Outputs.
        weights: [K, M]; None of a model's scores.

    Returns:
        The sums in the order of TALLY, f64 [len(TALLY)]; those that cannot be had are NaN. Tallies of micro-batches,
        ranks and steps add up.
    """
    logps, entropy = Outputs.of(given).logps, Outputs.of(given).entropy
    rewards = rewards.detach().double()
    plain = torch.full_like(rewards, math.nan) if logps is None else _plain_sums(batch, logps)
    better, worse = ranked_pairs(batch)
    chosen, rejected = rewards[better], rewards[worse]
    scored = batch.token_mask.sum(dtype=torch.float64)
    return torch.stack([
        losses.detach().double().sum(),
        chosen.sum(), rejected.sum(), (chosen > rejected).double().sum(), (chosen - rejected).sum(),
        plain[better].sum(), plain[worse].sum(),
        batch_units(method, batch), scored.new_tensor(better.numel()),
        (scored > 0) * scored.new_tensor(batch.input_ids.numel()), scored,
        scored.new_tensor(math.nan) if weights is None else ((weights[0] < 0) & (batch.token_mask > 0)).double().sum(),
        scored.new_tensor(batch.input_ids.numel()), *(scored > 0) * useful_tokens(batch),
        scored.new_tensor(math.nan) if entropy is None else (entropy.detach().double() * batch.token_mask).sum(),
        _weightless(batch),
    ])  # fmt: skip


def useful_tokens(batch: PackedBatch) -> Tensor:
    """Two counts, f64 [2]: the tokens that the loss depends on, and the positions that they see.

    Each prompt counts once, whatever the layout. Inputs end where the last scored token is read. What is repeated, in
    the separate layout, are prompts, with what a template puts before a response's first token.
    """
    if not len(batch.response_index):
        return torch.zeros(2, dtype=torch.float64, device=batch.input_ids.device)
    scored, counts = torch.unique_consecutive(batch.response_index, return_counts=True)  # the others have no prompt
    first = counts.cumsum(0) - counts
    prompt = (batch.position_ids[batch.hidden_index[first]] + 1 - batch.token_position[first]).double()  # its tokens
    group = batch.response_group[scored]
    again = torch.cat([group.new_zeros(1, dtype=torch.bool), group[1:] == group[:-1]])
    repeated = prompt * (again & (batch.segment_parent.max() < 0))
    seen = (batch.position_ids + 1).sum(dtype=torch.float64) - (repeated * (repeated + 1) / 2).sum()
    return torch.stack([seen.new_tensor(batch.input_ids.numel()) - repeated.sum(), seen])


def _plain_sums(batch: PackedBatch, logps: Tensor) -> Tensor:
    """Sum of each response's scored tokens, [R] f64."""
    return weighted_sums(batch.token_mask[None], logps.detach().double(), batch)[0]


def _weightless(batch: PackedBatch) -> Tensor:
    """Groups of which nothing is scored, so that nothing is computed for them, 0-dim f64; 0 where a head reads all."""
    groups = batch.response_group[batch.response_row >= 0]
    scored = batch.response_group[batch.response_index]
    count = torch.unique(groups).numel() - torch.unique(scored).numel()
    none = not groups.numel() or batch.last_index is not None
    return batch.token_mask.new_tensor(0 if none else count, dtype=torch.float64)


def ranked_pairs(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """The better and the worse response of each pair, [pairs]: indices into R.

    Chosen and rejected; of candidates every two responses of a prompt whose scores differ.
    """
    if batch.pair_chosen.numel():
        return batch.pair_chosen, batch.pair_rejected
    group, score = batch.response_group, batch.response_score
    better, worse = ((group[:, None] == group[None]) & (score[:, None] > score[None])).nonzero(as_tuple=True)
    return better, worse


def batch_units(method: Method, batch: PackedBatch) -> Tensor:
    """Count the units of the method's loss in the micro-batch, 0-dim f64. A zero-loss batch has none."""
    return count_units(method.unit, batch).to(batch.token_mask.device, torch.float64)


def averages(totals: Tensor) -> dict[str, float]:
    """Means of a global tally: the loss per unit, TOKEN_MEANS per scored token, the rest per pair (if any).

    What comes from log-probs is left out where the model has none.
    """
    sums = dict(zip(TALLY, totals.tolist(), strict=True))
    means = {"loss": sums["loss"] / sums["units"]} if sums["units"] else {}
    if sums["num_scored_tokens"]:
        means |= {name: sums[name] / sums["num_scored_tokens"] for name in TOKEN_MEANS}
    means |= {name: sums[name] / sums["pairs"] for name in PAIR_MEANS} if sums["pairs"] else {}
    return {name: mean for name, mean in means.items() if not (name in FROM_LOGPS and math.isnan(mean))}


def ranking_margins(batch: PackedBatch, given: Tensor | Outputs) -> Tensor:
    """By how much a model ranks each pair right: its mean log-prob of scored tokens, or its score.

    Args:
        batch: the micro-batch.
        given: what the model gave: log-probs [M], or Outputs.

    Returns:
        The better response's less the worse one's, f64 [pairs] in the order of `ranked_pairs`.
    """
    outputs = Outputs.of(given)
    if outputs.scores is not None:
        values = outputs.scores.detach().double()
    else:
        assert outputs.logps is not None  # noqa: S101  (a model gives one of them)
        values = _plain_sums(batch, outputs.logps) / batch.scored_length.double().clamp(min=1)
    better, worse = ranked_pairs(batch)
    return values[better] - values[worse]


def append_line(path: Path, line: Mapping[str, object]) -> None:
    """Append one JSON line to `metrics.jsonl`."""
    append(path, (json.dumps(line) + "\n").encode())


def last_step(path: Path, stage: str) -> int:
    """The last step that the file has of a stage; 0 where it has none."""
    found = 0
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # cut by a kill
            continue
        found = max(found, record["step"] if record.get("stage") == stage else 0)
    return found


def drop_lines_after(path: Path, stage: str, step: int) -> None:
    """Drop the stage's lines with a later step, and a line cut by a kill, so that a resumed run repeats none."""
    if not path.exists():
        return

    def stays(line: str) -> bool:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            return False
        return bool(record.get("stage") != stage or record["step"] <= step)

    kept = [line for line in path.read_text().splitlines() if stays(line)]
    atomic_write(path, "".join(line + "\n" for line in kept).encode())
