"""A policy with its reference beside it: log-probs, and the divergence from the reference over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.adapters import adapters_off, base_layer, is_lora
from pyprefopt.modeling.head.outputs import Readout, token_outputs
from pyprefopt.modeling.logps import LogpsModel
from pyprefopt.types import Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyprefopt.types import PackedBatch


class ReferencedModel(LogpsModel):
    """A policy whose forward also gives KL(reference || policy) where each scored token is predicted.

    The reference is no submodule: it is neither trained, saved nor sharded, but follows to another device or dtype.

    Args:
        policy: from `load_model`, plain or under PEFT.
        reference: the frozen model; None where the policy has LoRA: the reference is then the policy with its adapter
            off.
        probe: as of LogpsModel, for the policy.
        entropy: as of LogpsModel, of the policy's distributions.

    Raises:
        ConfigError: no reference for a policy without LoRA, or what LogpsModel refuses.

    Example:
        >>> reference = LogpsModel(load_model("models/base"))  # doctest: +SKIP
        >>> model = ReferencedModel(load_model("models/base"), reference)  # doctest: +SKIP
        >>> outputs = model(batch)  # .logps and .kl [M]  # doctest: +SKIP
    """

    def __init__(
        self, policy: nn.Module, reference: LogpsModel | None = None, *, probe: bool = True, entropy: bool = False
    ) -> None:
        super().__init__(policy, probe=probe, entropy=entropy)
        if reference is None and not is_lora(policy):
            raise ConfigError("reference must be given where the policy has no LoRA adapter to switch off, got None")
        if reference is not None:
            reference.requires_grad_(False).eval()
        self._beside = (reference,)  # in a tuple, where torch does not look for modules

    @property
    def reference(self) -> LogpsModel | None:
        """The frozen model; None: the policy without its adapter."""
        return self._beside[0]

    def forward(self, batch: PackedBatch) -> Outputs:
        """Compute log-probs and divergences of the scored tokens.

        Args:
            batch: of torch tensors, on the model's device.

        Returns:
            `logps` and `kl`, and `entropy` while that is True, each [M] in nats, in max(float32, the model's dtype).

        Raises:
            ConfigError: policy and reference have vocabularies of different sizes.
        """
        reference = self._reference_readout(batch)  # first: switching an adapter touches no graph then
        policy = self.readout(batch)
        return token_outputs(policy, batch.target_ids, reference=reference, entropy=self.entropy)

    @torch.no_grad()
    def _reference_readout(self, batch: PackedBatch) -> Readout:
        if self.reference is not None:
            return self.reference.readout(batch)
        with adapters_off(self.model):
            readout = self.readout(batch)
        return readout._replace(head=base_layer(readout.head))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.reference is not None:
            self.reference._apply(fn, recurse)
        return super()._apply(fn, recurse)
