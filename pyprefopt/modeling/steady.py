"""Layers that compute something else in training than in evaluation: found by running, and kept in evaluation.

A policy must compute in training what its reference and its users compute. Dropout is set to 0 where a setting is
named so; what else draws random numbers (noise on a router's input, experts drawn by chance, skipped layers) is seen
here: its outputs differ, or a generator of random numbers has moved, however rarely that shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[[], "Tensor"]

# Largest mean difference of two runs of the same numbers, relative to their mean size.
_LARGEST = 1e-6


def find_unsteady(model: nn.Module, run: Run) -> frozenset[str] | None:
    """Find the classes of layers that must be kept in evaluation for `run` to give the same numbers in training.

    Args:
        model: in any mode; it is left in evaluation.
        run: of the model, without a gradient or with one.

    Returns:
        Names of classes, as few as will do; None: `run` is random in evaluation too.
    """
    with _generators_kept():
        model.eval()
        wanted = run().detach()
        if not _is_calm(run, wanted, drawing=True):
            return None
        if _is_calm_in(model, run, wanted, frozenset()):
            return frozenset()
        kept = dict.fromkeys(type(module).__name__ for module in model.modules())  # the outer ones first
        for name in list(kept):
            fewer = frozenset(kept) - {name}
            if _is_calm_in(model, run, wanted, fewer):
                del kept[name]
        model.eval()
    return frozenset(kept)


def keep_in_evaluation(model: nn.Module, names: Collection[str]) -> int:
    """Let the modules of these classes stay in evaluation, whatever mode the model is in; those below them do not.

    Returns:
        How many modules these are.
    """
    modules = [module for module in model.modules() if type(module).__name__ in names]
    for module in modules:
        if not isinstance(module, _Steady):
            module.__class__ = _steady(type(module))  # type: ignore[arg-type]
        module.training = False
    return len(modules)


class _Steady(nn.Module):
    """What a module becomes; before it in the order of its classes."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the modules below."""
        super().train(mode)
        self.training = False
        return self


@lru_cache
def _steady(kind: type[nn.Module]) -> type[_Steady]:
    return cast("type[_Steady]", type(kind.__name__, (_Steady, kind), {"__module__": kind.__module__}))


def _is_calm_in(model: nn.Module, run: Run, wanted: Tensor, kept: frozenset[str]) -> bool:
    """In training, but for the modules of the classes in `kept`."""
    for module in model.modules():
        module.training = type(module).__name__ not in kept
    return _is_calm(run, wanted, drawing=False)


def _is_calm(run: Run, wanted: Tensor, *, drawing: bool) -> bool:
    """Whether a run gives `wanted`, and (unless `drawing`) draws no random number."""
    before = _generators()
    try:
        states = run().detach()
    except Exception:  # attention that refuses to drop anything
        return False
    difference = ((states - wanted).abs().mean() / wanted.abs().mean()).item()
    return difference <= _LARGEST and (drawing or _generators() == before)


def _generators() -> tuple[Any, ...]:
    """The states of the generators that a layer may draw from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), kind, np.asarray(keys).tobytes(), *rest


@contextmanager
def _generators_kept() -> Iterator[None]:
    ours, theirs = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(theirs)
