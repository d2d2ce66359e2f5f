"""What an architecture does to the output of its head: found in its config, and chosen by what the model computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


# Words in the names of the settings by which architectures scale or cap their logits.
_WORDS = ("logit", "softcap", "soft_cap", "lm_head_mult", "output_mult")


@dataclass(frozen=True)
class HeadTransform:
    """What an architecture does to the head's output: y = cap * tanh(scale * z / cap), or y = scale * z."""

    scale: float = 1.0  # Cohere: logit_scale; Granite: 1 / logits_scaling
    cap: float | None = None  # Gemma 2: final_logit_softcapping

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> HeadTransform:
        """Read the three settings that most of transformers' architectures know."""
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(scale, None if cap is None else float(cap))

    @classmethod
    def candidates(cls, config: PreTrainedConfig) -> Iterator[HeadTransform]:
        """Every transform that the config's numbers may mean: which one holds is to be seen."""
        numbers = {
            float(value)
            for name, value in vars(config).items()
            if isinstance(value, int | float) and value > 0 and any(word in name for word in _WORDS)
        }
        for cap in (None, *sorted(numbers)):
            for scale in (1.0, *sorted(numbers), *sorted(1 / number for number in numbers)):
                yield cls(scale, cap)

    def __call__(self, logits: Tensor) -> Tensor:
        """Final logits from the head's output, any shape; a new tensor, unless there is nothing to do."""
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def derivative(self, logits: Tensor) -> Tensor | float:
        """dy/dz, from the final logits y."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap) ** 2)
