"""A reward model: a transformer with one linear unit, read at the last token of each response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling.logps import check_packing
from pyprefopt.modeling.packed_model import PackedModel
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch


class RewardModel(PackedModel):
    """A sequence classifier with one label whose forward takes a PackedBatch and gives a score of each response.

    model: from `load_model(..., head="reward")`. What counts is the position that the packer names, never a comparison
    with the padding token, so a response that ends with it is read right. `probe` as in LogpsModel.
    """

    def __init__(self, model: nn.Module, *, probe: bool = True) -> None:
        super().__init__(model)
        head = getattr(self.causal, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise ConfigError(
                f"{type(self.causal).__name__} has no linear head `score` of one output, which a reward model is "
                "trained with; use another architecture"
            )
        if probe:
            check_packing(self)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Scores [R], in max(float32, the model's dtype)."""
        if batch.last_index is None:
            raise DataError("a reward model reads each response's last token; give the Packer last_token=True")
        hidden = F.embedding(batch.last_index, self.hidden_states(batch))  # [R, H]
        scores: Tensor = self.causal.score(hidden)[:, 0]
        return Outputs(scores=scores.to(torch.promote_types(scores.dtype, torch.float32)))
