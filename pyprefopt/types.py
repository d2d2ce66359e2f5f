"""The few records that rooms hand to each other.

Shape legend, used in every signature of the package:

    N  input tokens of a micro-batch           M  scored tokens (positions that a method may weight)
    S  segments (a prompt, or a response)      R  responses
    P  pairs                                   K  weight sets of a method
    V  vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyprefopt.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class PackedBatch:
    """One micro-batch without padding: NumPy arrays from `data.pack`, torch tensors after `to`.

    A segment sees its parent and itself, causally, and nothing else. In the `separate` layout every response
    carries its own prompt and parents are -1; in the `shared` layout the prompt stands once and is the parent.
    Inputs end at the last position that a scored token reads, so a segment can be empty; with `last_index` they are
    all of the response. M leaves out tokens of user weight 0 (unless a method reads them): lengths count them, but
    nothing is computed for them, and a response with no other token has no segment. Its group still counts as a unit.
    """

    input_ids: Tensor  # [N] i64
    position_ids: Tensor  # [N] i64, position in the own document (a shared response goes on after its prompt)
    segment_offsets: Tensor  # [S+1] i64
    segment_parent: Tensor  # [S] i64, index of the prompt segment that a response sees, or -1
    hidden_index: Tensor  # [M] i64, which input position's hidden state predicts the token; may repeat
    target_ids: Tensor  # [M] i64
    response_index: Tensor  # [M] i64, ascending: which response the token belongs to
    token_position: Tensor  # [M] i64, t = 0.. within the response (before selection)
    token_mask: Tensor  # [M] f32, 1 for a token that counts, 0 for one that does not (zero-loss batches)
    response_row: Tensor  # [R] i64, the input row (for messages); -1: of a batch that counts nothing
    response_line: Tensor  # [R] i64, line of the segments table (key of per-token values)
    response_length: Tensor  # [R] f32, response tokens after truncation, before selection
    scored_length: Tensor  # [R] f32, response tokens that selection kept, those of user weight 0 counted
    selection_ratio: Tensor  # [R] f32, the ratio k that selected the tokens; 1 without selection
    response_group: Tensor  # [R] i64, the prompt group inside this batch, 0..
    response_score: Tensor  # [R] f32, the data's own score of the response; NaN where absent
    pair_chosen: Tensor  # [P] i64, index into R
    pair_rejected: Tensor  # [P] i64, index into R
    token_rewards: Tensor | None = None  # [M] f32
    user_weights: Tensor | None = None  # [M] f32
    ref_logps: Tensor | None = None  # [M] f32
    last_index: Tensor | None = None  # [R] i64, input position of each response's last token, where a head reads it

    def __repr__(self) -> str:
        return (
            f"PackedBatch({len(self.pair_chosen):,} pairs, {len(self.response_row):,} responses, "
            f"{len(self.input_ids):,} tokens, {len(self.target_ids):,} of them scored)"
        )

    def map(self, function: Callable[[Any], Any]) -> PackedBatch:
        """A copy with `function` applied to every array that is there."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(array) for name, array in arrays.items() if array is not None})

    def to(self, device: torch.device | str = "cpu") -> PackedBatch:
        """The batch as torch tensors on `device`."""
        import torch

        return self.map(lambda array: torch.as_tensor(array).to(device))

    def save(self, path: str | Path) -> None:
        """Write as safetensors; absent optional arrays are left out."""
        import numpy as np
        from safetensors.numpy import save_file

        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}, path)

    @classmethod
    def load(cls, path: str | Path) -> PackedBatch:
        """Read what `save` wrote, as NumPy arrays."""
        from safetensors.numpy import load_file

        return cls(**load_file(path))


class Outputs(NamedTuple):
    """What a model gives for a batch. What it was not opened for is None."""

    logps: Tensor | None = None  # [M], log-probs of the scored tokens; None: a model without a vocabulary
    kl: Tensor | None = None  # [M], KL(reference || policy) over the vocabulary where each token is predicted
    scores: Tensor | None = None  # [R], a reward model's score of each response
    entropy: Tensor | None = None  # [M], nats, of the distribution that each token is predicted by

    @classmethod
    def of(cls, given: Tensor | Outputs) -> Outputs:
        """What a model's forward gave: a bare tensor is log-probs."""
        return given if isinstance(given, Outputs) else cls(logps=given)


@dataclass(frozen=True)
class Sums:
    """Weighted sums of log-probs per response, as a method's `loss` receives them."""

    policy: Tensor  # [K, R]; where the method needs `reward_head`, [1, R]: the model's scores
    ref: Tensor | None = None  # [K, R], where the method needs `ref_logps`
    kl: Tensor | None = None  # [R], where the method needs `ref_kl`: summed over the tokens in `token_mask`
    weights: Tensor | None = None  # [K, M], the method's own, without the user's; None of a model's scores
    method: str = "the method"  # its name, for errors

    @property
    def log_ratio(self) -> Tensor:
        """Policy less reference, [K, R]; a ConfigError where the method does not declare `ref_logps`."""
        if self.ref is None:
            raise undeclared(self.method, "ref_logps")
        return self.policy - self.ref

    @property
    def divergence(self) -> Tensor:
        """`kl`, [R]; a ConfigError where the method does not declare `ref_kl`."""
        if self.kl is None:
            raise undeclared(self.method, "ref_kl")
        return self.kl


def undeclared(method: str, need: str) -> ConfigError:
    """The error of a method that reads what it does not declare."""
    return ConfigError(
        f"{method}.needs must have '{need}', which its formula reads; declare needs = frozenset({{'{need}'}})"
    )


def unkeyed(default: Any = MISSING) -> Any:
    """A field that decides no result beyond rounding, or names a file whose content does: no key holds it."""
    return field(default=default, metadata={"keyed": False})


def keyed_names(cls: type) -> list[str]:
    """The fields of a dataclass that decide a result."""
    return [f.name for f in fields(cls) if f.metadata.get("keyed", True)]


def unkeyed_names(cls: type) -> list[str]:
    """The other fields."""
    return [f.name for f in fields(cls) if not f.metadata.get("keyed", True)]
