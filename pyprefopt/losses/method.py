"""What a preference method is: a weight per token, a weighted sum per response, a function of the sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

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
    """A preference method is a weight per token, a weighted sum per response, and a function of the sums.

    Its settings are its fields. The stages provide what it declares (`needs`, `trains_on`), and its functions are pure.
    The trainer divides the global sum of `loss` by the global number of units. Letters of shapes: `pyprefopt.types`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Hinge(Method):
        ...     target: float = 1.0  # nats that the chosen response must be ahead
        ...
        ...     def loss(self, sums, batch):
        ...         return torch.relu(self.target - self.margin(sums, batch))
        >>> method, logps = Hinge(), torch.tensor([-1.0, -2.0, -0.5, -3.0])  # [M] of a batch of one pair
        >>> weights = method.token_weights(batch, logps)  # [1, M]
        >>> method.loss(Sums(policy=weighted_sums(weights, logps, batch)), batch)  # [P]
        tensor([0.5000])
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
    def content(self) -> Mapping[str, str]:
        """Settings that name files, by what stands in these: a key holds that in the place of the names."""
        return {}

    @property
    def reward_factor(self) -> float | None:
        """The number that multiplies the token rewards, where there is one."""
        return None

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """Weigh the scored tokens, here by 1; called once a micro-batch.

        Args:
            batch: a micro-batch of torch tensors.
            logps: [M] float, the policy's log-probs of the scored tokens in nats, detached.

        Returns:
            [K, M] float, 0 where `batch.token_mask` is 0; K sets of weights give K sums. User weights come on top.
        """
        return batch.token_mask[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Reward each response in the method's own unit; here by its first sum, or its score.

        Args:
            sums: weighted sums of log-probs, [K, R].
            batch: the micro-batch that they were made of.

        Returns:
            [R] float.
        """
        return sums.policy[0]

    def margin(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Subtract the rejected response's reward from the chosen one's.

        Args:
            sums: weighted sums of log-probs, [K, R].
            batch: the micro-batch that they were made of.

        Returns:
            [P] float, in the unit of `rewards`.
        """
        return chosen_minus_rejected(self.rewards(sums, batch), batch)

    @abstractmethod
    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Compute the loss.

        Args:
            sums: weighted sums of log-probs, [K, R], and what else the method declares in `needs`.
            batch: the micro-batch that they were made of.

        Returns:
            The loss of each pair, [P] float, or each response's part of its group's, [R] float.
        """

    def token_rewards(self, batch: PackedBatch) -> Tensor:
        """The token rewards of the batch.

        Returns:
            [M] float.

        Raises:
            ConfigError: the batch has none, for the method does not declare that it needs them.
        """
        if batch.token_rewards is None:
            raise undeclared(type(self).__name__, "token_rewards")
        return batch.token_rewards


def undeclared_kind(method: type[Method]) -> str | None:
    """What a class must be whose declarations are of no known kind; None: they are."""
    unknown = sorted(set(method.needs) - set(get_args(Need)))
    if unknown:
        return f"one whose needs are of {', '.join(get_args(Need))}, got {', '.join(map(repr, unknown))}"
    if method.trains_on not in get_args(TrainsOn):
        return f"one whose trains_on is one of {', '.join(get_args(TrainsOn))}, got {method.trains_on!r}"
    return None


def weighted_sums(weights: Tensor, values: Tensor, batch: PackedBatch) -> Tensor:
    """Sum `weights * values` over each response's tokens.

    A token of weight 0 counts nothing, even where its log-prob is -inf.

    Args:
        weights: [K, M] float.
        values: [M] float, for example log-probs in nats.
        batch: the micro-batch whose scored tokens these are.

    Returns:
        [K, R] float.

    Example:
        >>> batch.response_index  # two tokens of the first response, two of the second
        tensor([0, 0, 1, 1])
        >>> weighted_sums(torch.ones(1, 4), torch.tensor([-1.0, -2.0, -0.5, -3.0]), batch)
        tensor([[-3.0000, -3.5000]])
    """
    products = weights * torch.where(weights == 0, torch.zeros_like(values), values)
    sums = products.new_zeros(weights.shape[0], batch.response_row.shape[0])
    return sums.index_add(1, batch.response_index, products)


def chosen_minus_rejected(per_response: Tensor, batch: PackedBatch) -> Tensor:
    """Subtract the rejected response's value from the chosen one's, within each pair.

    Args:
        per_response: [..., R].
        batch: the micro-batch whose responses these are.

    Returns:
        [..., P].

    Example:
        >>> batch.pair_chosen, batch.pair_rejected
        (tensor([0]), tensor([1]))
        >>> chosen_minus_rejected(torch.tensor([3.0, 1.0]), batch)
        tensor([2.])
    """
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
    """Count the units of the loss that a batch holds.

    User weights change no count: a token of weight 0, and a pair of such tokens, is a unit like any other.

    Args:
        unit: `pair`, `group` (a prompt with a scored response) or `token` (a scored one).
        batch: a micro-batch; responses of row -1 (of a batch that counts nothing) are left out.

    Returns:
        A 0-dim float tensor.

    Example:
        >>> count_units("pair", batch), count_units("group", batch), count_units("token", batch)
        (tensor(1.), tensor(1.), tensor(4.))
    """
    if unit == "pair":
        return torch.tensor(float(batch.pair_chosen.shape[0]))
    lengths = batch.scored_length * (batch.response_row >= 0)
    if unit == "token":
        return lengths.sum()
    return torch.tensor(float(torch.unique(batch.response_group[lengths > 0]).numel()))
