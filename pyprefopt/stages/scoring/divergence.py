"""Stage `divergence`: how far two models are from each other at every token, over their whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyprefopt.modeling.head.outputs import token_outputs
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.models import Source, open_model
from pyprefopt.stages.scoring.tokens import score_tokens
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.training.engine import init_distributed
from pyprefopt.types import PackedBatch

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = {"train": "kl_policy_ref", "train_ref_policy": "kl_ref_policy"}  # folder of values -> what they are


@dataclass(frozen=True, kw_only=True)
class Divergence(Stage):
    """KL(policy || ref) and KL(ref || policy), in nats, of the distributions by which each token is predicted."""

    name: str = "divergence"
    data: Artifact
    policy: Source
    ref: Source
    dtype: str = "float32"

    collective = True

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Per-token divergences of every response of `train` and `eval`, in both directions.

        Raises:
            ConfigError: the two vocabularies differ in size.
        """
        device = init_distributed()
        policy, ref = (
            open_model(source, self.data, runtime, dtype=self.dtype).to(device).eval()
            for source in (self.policy, self.ref)
        )

        @torch.no_grad()
        def score(batch: PackedBatch) -> Mapping[str, Tensor]:
            own, other = policy.readout(batch), ref.readout(batch)
            forward = token_outputs(other, batch.target_ids, reference=own).kl
            backward = token_outputs(own, batch.target_ids, reference=other).kl
            assert forward is not None and backward is not None  # noqa: S101, PT018  (both have a reference)
            return {"values": forward, "ref_policy": backward}

        score_tokens(self, self.data, [policy, ref], score, directory, runtime)
        return {}
