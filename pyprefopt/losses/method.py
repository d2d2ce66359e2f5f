"""What a preference method is: a weight per token, a weighted sum per response, a function of the sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pyprefopt.types import undeclared

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums

Need = Literal["ref_logps", "token_rewards", "ref_kl", "reward_head"]
Unit = Literal["pair", "group", "token"]
TrainsOn = Literal["pairs", "candidates", "responses"]
Transform = Literal["raw", "sigmoid_centered"]


@dataclass(frozen=True)
class Method(ABC):
    """A method: its settings are its fields, what it declares the stages provide, its functions are pure.

    `loss` gives one value per unit. The trainer divides the global sum by the global number of units.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()  # what batch and model must bring
    trains_on: ClassVar[TrainsOn] = "pairs"
    reads_unweighted: ClassVar[bool] = False  # whether the weights depend on tokens of user weight 0
    reward_transform: ClassVar[Transform | None] = (
        None  # of log-ratios as token rewards; None: as the provider gives them
    )

    @property
    def unit(self) -> Unit:
        """What the loss is averaged over, globally."""
        return "pair"

    @property
    def reads_scores(self) -> bool:
        """Whether every response must come with a score of its own."""
        return False

    @property
    def divides_by_ratio(self) -> bool:
        """Whether the formula has the ratio k of the selection, which must then have one."""
        return False

    @property
    def reward_factor(self) -> float | None:
        """The number that multiplies the token rewards, where there is one."""
        return None

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """Weights [K, M] of the scored tokens, here 1; `logps` [M] is detached. Asked for once a micro-batch."""
        return batch.token_mask[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """The method's own reward of each response, [R]: here its first sum, or its score."""
        return sums.policy[0]

    def margin(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Reward of the chosen less that of the rejected response, [P]."""
        return chosen_minus_rejected(self.rewards(sums, batch), batch)

    @abstractmethod
    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Loss of each pair, [P], or each response's part of a group's, [R]."""

    def token_rewards(self, batch: PackedBatch) -> Tensor:
        """The token rewards of the batch, [M]; a ConfigError where the method does not declare them."""
        if batch.token_rewards is None:
            raise undeclared(type(self).__name__, "token_rewards")
        return batch.token_rewards


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


def one_over(count: Tensor, batch: PackedBatch) -> Tensor:
    """1 / the count of its response for each scored token: [R] -> [M]."""
    return batch.token_mask / count[batch.response_index]


def side_signs(batch: PackedBatch) -> Tensor:
    """+1 for the tokens of chosen, -1 for those of rejected responses, 0 for others: [M]."""
    of_response = batch.token_mask.new_zeros(batch.response_row.shape[0])
    of_response = of_response.index_fill(0, batch.pair_chosen, 1.0).index_fill(0, batch.pair_rejected, -1.0)
    return of_response[batch.response_index]


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
