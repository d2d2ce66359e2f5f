"""Identity preference optimization (Azar et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pyprefopt.errors import check_scale
from pyprefopt.losses.method import Need, TrainsOn, Unit, chosen_minus_rejected

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch, Sums


@dataclass(frozen=True)
class IPO:
    """IPO (Azar et al. 2024, Eq. 17), on mean log-ratios, as its authors confirmed, or on sums, as several codes do."""

    beta: float = 0.1  # tau of the paper: the log-ratios are to differ by 1 / (2 beta); usual 0.01 to 1
    length_normalized: bool = True  # compare mean log-ratios of a token; false: sums over the response

    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logps"})
    unit: ClassVar[Unit] = "pair"
    trains_on: ClassVar[TrainsOn] = "pairs"

    def __post_init__(self) -> None:
        check_scale("loss.beta", self.beta, "usual range 0.01 to 1")

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:  # noqa: ARG002
        """1 / |y|, or 1, for each scored token: [1, M]."""
        if not self.length_normalized:
            return batch.token_mask[None]
        return (batch.token_mask / batch.response_length[batch.response_index])[None]

    def rewards(self, sums: Sums, batch: PackedBatch) -> Tensor:  # noqa: ARG002
        """Mean (or sum) of the log-ratios, [R], in nats."""
        assert sums.ref is not None  # noqa: S101  (declared in `needs`)
        return (sums.policy - sums.ref)[0]

    def loss(self, sums: Sums, batch: PackedBatch) -> Tensor:
        """Squared distance of the margin from 1 / (2 beta), [P]."""
        return (chosen_minus_rejected(self.rewards(sums, batch), batch) - 1 / (2 * self.beta)).square()
