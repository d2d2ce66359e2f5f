"""DPO with a temporal decay: D2PO (Shao et al. 2025) and the decay of Yang et al. 2024."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from pyprefopt.errors import check, check_scale
from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class D2PO(DPO):
    """D2PO is DPO in which token t = 0, 1, ... of a response counts decay^t.

    Source: Shao et al. 2025; TGDPO, Table 7.
    """

    decay: float = 0.98  # gamma: factor from one token to the next; usual 0.9 to 1, 1 is dpo

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.decay <= 1, "loss.decay", self.decay, "in (0, 1]", "usual range 0.9 to 1")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """decay^t: [1, M]."""
        return (batch.token_mask * self.decay ** batch.token_position.to(batch.token_mask.dtype))[None]


@dataclass(frozen=True)
class Temporal(Method):
    """Temporal decay weighs positions by a proper distribution over them.

    Loss of a pair: -log sigmoid of C times the expected log-ratio of chosen less rejected, t drawn with probability
    ~ decay^t. The paper prints no value of C or gamma, so both are to be given.

    Source: Yang et al. 2024; TGDPO, Table 7.
    """

    scale: float = math.nan  # required. C: factor of the expected log-ratio in nats; of the order of beta |y|, 1 to 100
    decay: float = math.nan  # required. gamma: factor from one token to the next; in (0, 1], usual 0.9 to 1
    estimator: Literal["exact", "sample"] = "exact"  # the expectation itself, or one random t a pair and step
    support: Literal["own", "common"] = "own"  # t runs over each response, or over the shorter one's length

    needs = frozenset({"ref_logps"})

    def __post_init__(self) -> None:
        no_default = "it has no default because no value is published; usual"
        check_scale("loss.scale", self.scale, f"{no_default} 1 to 100")
        check(0 < self.decay <= 1, "loss.decay", self.decay, "in (0, 1]", f"{no_default} 0.9 to 1")
        check(self.estimator in ("exact", "sample"), "loss.estimator", self.estimator, "'exact' or 'sample'")
        check(self.support in ("own", "common"), "loss.support", self.support, "'own' or 'common'")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """Probability of t (`exact`), or 1 at the t that was drawn and 0 elsewhere (`sample`): [1, M]."""
        length = self._support(batch)
        t = batch.token_position.to(length.dtype)
        if self.estimator == "sample":
            return (batch.token_mask * (t == self._draw(length, batch)[batch.response_index]))[None]
        total = length if self.decay == 1 else torch.expm1(length * math.log(self.decay)) / (self.decay - 1)
        inside = t < length[batch.response_index]
        return (batch.token_mask * inside * self.decay**t / total[batch.response_index])[None]

    def _support(self, batch: PackedBatch) -> Tensor:
        """How many positions t may take in each response, [R]."""
        length = batch.response_length.to(batch.token_mask.dtype)
        if self.support == "own":
            return length
        shorter = torch.minimum(length[batch.pair_chosen], length[batch.pair_rejected])
        return length.index_copy(0, batch.pair_chosen, shorter).index_copy(0, batch.pair_rejected, shorter)

    def _draw(self, length: Tensor, batch: PackedBatch) -> Tensor:
        """One t for each response, by the inverse of the distribution; the two of a pair share the draw: [R]."""
        u = torch.rand(batch.response_row.shape[0], dtype=length.dtype, device=length.device)
        u = u.index_copy(0, batch.pair_rejected, u[batch.pair_chosen])
        if self.decay == 1:
            return (u * length).floor()
        rate = math.log(self.decay)
        return (torch.log1p(u * torch.expm1(length * rate)) / rate).floor().clamp(max=length - 1)

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """`scale` times the expected log-ratio, [R]."""
        return self.scale * sums.log_ratio[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """-log sigmoid of the margin, [P]."""
        return -F.logsigmoid(self.margin(sums, batch))
