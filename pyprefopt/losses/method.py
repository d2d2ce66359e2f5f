"""What a preference method is: a weight per token, a weighted sum per response, a function of the sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums

Need = Literal["ref_logps", "token_rewards", "ref_kl", "reward_head"]
Unit = Literal["pair", "group", "token"]
TrainsOn = Literal["pairs", "candidates", "responses"]


class Method(Protocol):
    """A frozen config with pure functions and declarations.

    `token_weights` gives [K, M] without gradient; `loss` gives one value per unit. The trainer divides the global
    sum by the global number of units.
    """

    needs: ClassVar[frozenset[Need]]
    trains_on: ClassVar[TrainsOn]

    @property
    def unit(self) -> Unit:
        """What the loss is averaged over, globally."""

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """Weights [K, M] of the scored tokens; `logps` [M] is detached."""

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Loss of each pair, [P], or each response's part of a group's, [R]."""

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """The method's own reward of each response, [R]; its chosen-minus-rejected is what `loss` compares."""


def weighted_sums(weights: Tensor, values: Tensor, batch: PackedBatch) -> Tensor:
    """Sum `weights * values` over each response's tokens: [K, M], [M] -> [K, R].

    A token of weight 0 counts nothing, even where its log-prob is -inf.
    """
    products = weights * torch.where(weights == 0, torch.zeros_like(values), values)
    sums = products.new_zeros(weights.shape[0], batch.response_row.shape[0])
    return sums.index_add(1, batch.response_index, products)


def chosen_minus_rejected(per_response: Tensor, batch: PackedBatch) -> Tensor:
    """Difference within each pair: [..., R] -> [..., P]."""
    return per_response[..., batch.pair_chosen] - per_response[..., batch.pair_rejected]


def side_signs(batch: PackedBatch) -> Tensor:
    """+1 for the tokens of chosen, -1 for those of rejected responses, 0 for others: [M]."""
    of_response = batch.token_mask.new_zeros(batch.response_row.shape[0])
    of_response = of_response.index_fill(0, batch.pair_chosen, 1.0).index_fill(0, batch.pair_rejected, -1.0)
    return of_response[batch.response_index]


def given_rewards(batch: PackedBatch) -> Tensor:
    """The token rewards of a batch whose method declares them in `needs`, [M]."""
    assert batch.token_rewards is not None  # noqa: S101  (the trainer has looked)
    return batch.token_rewards


def count_units(unit: Unit, batch: PackedBatch) -> Tensor:
    """How many units of the loss this batch holds, a 0-dim float tensor; a batch that counts nothing has row -1.

    User weights change no count: a token of weight 0, and a pair of such tokens, is a unit like any other.
    """
    if unit == "pair":
        return torch.tensor(float(batch.pair_chosen.shape[0]))
    lengths = batch.scored_length * (batch.response_row >= 0)
    if unit == "token":
        return lengths.sum()
    return torch.tensor(float(torch.unique(batch.response_group[lengths > 0]).numel()))
