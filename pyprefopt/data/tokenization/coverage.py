"""How much of the responses' texts their tokens say: with a foreign tokenizer, little."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pyprefopt.errors import DataError

WARNED, REFUSED = 0.01, 0.5  # shares

logger = logging.getLogger("pyprefopt")


class Coverage(NamedTuple):
    """Counts over responses."""

    response_tokens: int = 0
    unknown_tokens: int = 0  # of these: the tokenizer's unknown token
    visible_bytes: int = 0  # of their texts, in UTF-8; counted where the tokenizer can drop some
    dropped_bytes: int = 0  # of these: without a token

    @classmethod
    def total(cls, counts: Iterable[Coverage]) -> Coverage:
        """The counts of all."""
        return cls(*map(sum, zip(cls(), *counts, strict=True)))

    @classmethod
    def of(cls, manifest: Mapping[str, int]) -> Coverage:
        """The counts that a manifest or a record holds."""
        return cls(**{name: manifest.get(name, 0) for name in cls._fields})

    def check(self, source: str, tokenizer: object) -> None:
        """Warn of what the tokenizer does not have from 1 % on.

        Args:
            source: what the responses are from.
            tokenizer: its path.

        Raises:
            DataError: it is half of the responses or more.
        """
        for count, of, what in (
            (self.unknown_tokens, self.response_tokens, "tokens are its unknown token"),
            (self.dropped_bytes, self.visible_bytes, "text has no token and is left out"),
        ):
            share = min(count / of, 1.0) if of else 0.0
            if share < WARNED:
                continue
            said = f"{source}: of the responses, tokenized by {tokenizer}, {share:.1%} of the {what}"
            if share >= REFUSED:
                raise DataError(f"{said}; take the tokenizer of a model that knows this language and script")
            logger.warning("%s; the model learns nothing of it", said)
