"""A causal language model that reads one token a row at a time, and remembers what it read."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("pyprefopt")

Around = Callable[[], AbstractContextManager[Any]]
# Largest mean difference, in nats, of next-token log-probs with padding before a prompt and without.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}
_TRIED = (2, 11)  # tokens of the two prompts on which that is looked at


@dataclass
class _Part:
    """Rows that are read together."""

    mask: Tensor  # [rows, tokens], 0 where padding stands
    cache: Any = None


class CachedModel:
    """A model's next-token logits for rows of different lengths, one token after another.

    Rows stand right-aligned. Padding before the shorter ones is masked, and positions count without it. Where a model
    gives other numbers so than for a row alone (it keeps a state that padding changes), every row is read alone.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        around: what every forward stands in, such as the adapter being off.
        together: read rows together; None: where a trial finds that padding changes nothing.

    Example:
        >>> model = CachedModel(causal)  # doctest: +SKIP
        >>> logits = model.start([[5, 6, 7], [5]])  # [2, V], of the next token  # doctest: +SKIP
        >>> logits = model.step(torch.tensor([8, 9]))  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, around: Around = nullcontext, *, together: bool | None = None) -> None:
        self.model, self.around = model, around
        taken = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in taken else "past_key_values"
        self._has_positions = "position_ids" in taken
        self._parts: list[_Part] = []
        self.together = self._padding_changes_nothing() if together is None else together

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """Rows of the model's head, which its logits are of."""
        return int(self.model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read whole prompts, each of at least one token; logits of the next tokens, [R, V]."""
        groups = [prompts] if self.together else [[prompt] for prompt in prompts]
        self._parts, logits = [], []
        for group in groups:
            longest = max(map(len, group))
            ids = torch.zeros(len(group), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(group):
                ids[row, longest - len(prompt) :] = torch.tensor(prompt)
                mask[row, longest - len(prompt) :] = 1
            self._parts.append(_Part(mask.to(self.device)))
            logits.append(self._forward(self._parts[-1], ids.to(self.device)))
        return torch.cat(logits)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each row, [R]; logits of the next, [R, V]."""
        logits, first = [], 0
        for part in self._parts:
            own = tokens[first : first + len(part.mask)]
            part.mask = torch.cat([part.mask, part.mask.new_ones(len(own), 1)], dim=1)
            logits.append(self._forward(part, own[:, None]))
            first += len(own)
        return torch.cat(logits)

    def keep(self, rows: Tensor) -> None:
        """Leave out all rows but these, indices in ascending order."""
        kept, first = [], 0
        for part in self._parts:
            count = len(part.mask)
            own = rows[(rows >= first) & (rows < first + count)] - first
            first += count
            if len(own) == 0:
                continue
            if len(own) < count:
                part.mask = part.mask[own]
                part.cache.batch_select_indices(own)
            kept.append(part)
        self._parts = kept

    def _forward(self, part: _Part, ids: Tensor) -> Tensor:
        given: dict[str, Any] = {"attention_mask": part.mask, self._cache_name: part.cache, "use_cache": True}
        if self._has_positions:
            given["position_ids"] = part.mask.cumsum(1).sub(1).clamp(min=0)[:, -ids.shape[1] :]
        with self.around():
            outputs = self.model(input_ids=ids, **given)
        part.cache = getattr(outputs, self._cache_name)
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _padding_changes_nothing(self) -> bool:
        """Whether two prompts of different lengths give the same together and alone, one of them also left out."""
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        prompts = [[(7 * k + 3) % vocabulary for k in range(count)] for count in _TRIED]
        tokens = torch.tensor([5 % vocabulary, 1], device=self.device)
        found = []
        for self.together in (False, True):
            seen = [self.start(prompts), self.step(tokens)]
            try:
                self.keep(torch.tensor([0], device=self.device))
            except (AttributeError, NotImplementedError):  # a cache of which no row can be left out
                return False
            seen.append(self.step(tokens[:1]))
            found.append(torch.cat(seen).double().log_softmax(-1))
        self._parts = []
        difference = (found[0] - found[1]).abs().mean().item()
        same = difference <= TOLERANCE.get(next(self.model.parameters()).dtype, 1e-4)
        if not same:
            logger.warning(
                "%s: padding before a prompt changes what the model says (%.1e nats), so that every sample is "
                "generated alone, which is slow", type(self.model).__name__, difference,
            )  # fmt: skip
        return same
