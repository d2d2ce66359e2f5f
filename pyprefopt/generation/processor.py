"""A decoder as a logits processor of transformers, so that it works inside `model.generate` too."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprefopt.errors import ConfigError
from pyprefopt.generation.cached_model import CachedModel
from pyprefopt.generation.decoders import Decoder, Step, kl_of


class DecoderProcessor:
    """Replaces the policy's logits by those that a decoder draws from.

    It is called as transformers' `LogitsProcessor` is, at every step. One object serves one call of `generate`, without
    beams.

    Args:
        decoder: the rule.
        ref: the reference.
        attention_mask: of the prompts that `generate` is given, [R, tokens]; None: no prompt is padded.

    Raises:
        ConfigError: the rows change between two calls, as those of beams do.

    Example:
        >>> processor = DecoderProcessor(Mixing(a=0.5), CachedModel(ref), inputs["attention_mask"])  # doctest: +SKIP
        >>> policy.generate(**inputs, do_sample=True, logits_processor=[processor])  # doctest: +SKIP
    """

    def __init__(self, decoder: Decoder, ref: CachedModel, attention_mask: Tensor | None = None) -> None:
        self.decoder, self.ref, self.attention_mask = decoder, ref, attention_mask
        self._seen: Tensor | None = None  # the tokens of the last call
        self._prompt = 0  # tokens of the longest prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits of the next tokens, [R, V], of the policy's own in `scores`."""
        if self._seen is None:
            self._prompt = input_ids.shape[1]
            mask = torch.ones_like(input_ids) if self.attention_mask is None else self.attention_mask
            rows = zip(input_ids, mask, strict=True)
            ref = self.ref.start([ids[is_there.bool()].tolist() for ids, is_there in rows])
        else:
            if not torch.equal(input_ids[:, :-1], self._seen):
                raise ConfigError("the rows of generate must stay as they are; leave num_beams at 1")
            ref = self.ref.step(input_ids[:, -1])
        self._seen = input_ids
        policy, ref = scores.double().log_softmax(-1), ref.double().log_softmax(-1)
        position = torch.full((len(scores),), input_ids.shape[1] - self._prompt, device=scores.device)
        choice = self.decoder.choose(Step(policy, ref, kl_of(policy, ref), position))
        return choice.logits.to(scores.dtype)
