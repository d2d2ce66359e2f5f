"""Shaping functions f of token rewards: named ones, and functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.storage.user_code import in_one_line, load_named

if TYPE_CHECKING:
    from torch import Tensor

Shape = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]

_CALL = "a function f(token_rewards, response_length, side)"

# Of alpha times the token reward, its sign turned in rejected responses. f(0) = 1.
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda guidance: 1 + guidance,  # TGDPO, Eq. 21
    "sigmoid": lambda guidance: 2 * torch.sigmoid(guidance),  # its authors' smoother suggestion; always positive
}


def check_shape(setting: str, shape: str) -> None:
    """ConfigError unless `shape` is a name of SHAPES or a function that can be loaded."""
    if shape not in SHAPES and ":" not in shape:
        names = ", ".join(SHAPES)
        raise ConfigError(
            f"{setting} must be one of {names}, or FILE.py:NAME of {_CALL}, got {shape!r}{did_you_mean(shape, SHAPES)}"
        )
    if shape not in SHAPES:
        custom_shape.cache_clear()  # the file may have changed since
        custom_shape(shape)


@cache
def custom_shape(path: str) -> Shape:
    """The function NAME of FILE.py, called with [M] each: rewards, the response's length, +1 chosen or -1 rejected.

    It is tried on a few tokens first, and what it gives is checked at each call.
    """
    found = load_named(path, "loss.shape")
    function = found.value
    if not callable(function):
        raise ConfigError(f"loss.shape must name a function of {found.file}, and it has no function '{found.name}'")

    def checked(rewards: Tensor, length: Tensor, side: Tensor) -> Tensor:
        try:
            weights: Any = function(rewards, length, side)
        except Exception as error:
            raise ConfigError(
                f"loss.shape {path!r} must be {_CALL}, got {in_one_line(error, found.file)}; mend it"
            ) from error
        if not isinstance(weights, torch.Tensor) or weights.shape != rewards.shape:
            got = f"shape {list(weights.shape)}" if isinstance(weights, torch.Tensor) else repr(weights)
            raise ConfigError(
                f"loss.shape {path!r} must be {_CALL} that gives each token a weight, a tensor of shape "
                f"{list(rewards.shape)}, got {got}; return one as long as token_rewards"
            )
        return weights

    checked(torch.linspace(-0.5, 0.5, 5), torch.tensor([3.0, 3, 3, 2, 2]), torch.tensor([1.0, 1, 1, -1, -1]))
    return checked


def shape_content(shape: str) -> str:
    """What a shape is, wherever it stands: of a function its name and the SHA-256 of its file."""
    return shape if shape in SHAPES else load_named(shape, "loss.shape").identity
