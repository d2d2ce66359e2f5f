"""A reward model: a transformer with one linear unit, read at the last token of each response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling.checkpoints.adapters import trained_head
from pyprefopt.modeling.logps import check_packing
from pyprefopt.modeling.packed_model import PackedModel, outputs_in_evaluation
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.types import PackedBatch


class RewardModel(PackedModel):
    """A sequence classifier with one label whose forward gives a score of each response.

    What counts is the position that the packer names, never a comparison with the padding token, so a response that
    ends with it is read right.

    Args:
        model: from `load_model(..., head="reward")`.
        probe: compare documents in a pack with documents alone, on a few made-up tokens; False: do not, for weights
            that are partitioned already.

    Raises:
        ConfigError: the model was not loaded for packed batches, has no linear head `score` of one output, or the
            probe finds other numbers than the model's own.

    Example:
        >>> model = RewardModel(load_model("models/base", head="reward"))  # doctest: +SKIP
        >>> scores = model(batch).scores  # [R]  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, *, probe: bool = True) -> None:
        super().__init__(model)
        head = trained_head(getattr(self.causal, "score", None))
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise ConfigError(
                f"{type(self.causal).__name__} has no linear head `score` of one output, which a reward model is "
                "trained with; use another architecture"
            )
        if probe:
            check_packing(self)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Compute a score of each response.

        Args:
            batch: of torch tensors, on the model's device, from a Packer with `last_token=True`.

        Returns:
            Outputs whose `scores` are [R], in max(float32, the model's dtype); the rest is None.

        Raises:
            DataError: the batch does not have the position of each response's last token.
        """
        if batch.last_index is None:
            raise DataError("a reward model reads each response's last token; give the Packer last_token=True")
        hidden = F.embedding(batch.last_index, self.hidden_states(batch))  # [R, H]
        scores: Tensor = self.causal.score(hidden)[:, 0]
        return Outputs(scores=scores.to(torch.promote_types(scores.dtype, torch.float32)))


def score_responses(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Compute a score of each response of a batch, without gradient and in evaluation mode.

    Args:
        model: a RewardModel; it is left in the mode in which it was.
        batch: of torch tensors, on the model's device, from a Packer with `last_token=True`.

    Returns:
        Scores [R], in max(float32, the model's dtype).

    Raises:
        ConfigError: a language model, which has no scores.

    Example:
        >>> scores = score_responses(model, batch)  # doctest: +SKIP
    """
    scores = outputs_in_evaluation(model, batch).scores
    if scores is None:
        raise ConfigError("a language model has no scores; score responses with a reward model")
    return scores
