"""What must hold of every provider of token rewards, tried on a few responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from pyprefopt.pipeline.trials.rows import SHAPES, Differs, as_tensor, find_worst
from pyprefopt.rewards import Reward, Tokens, check_reads, finished

if TYPE_CHECKING:
    from torch import Tensor


def provider_checks(provider: Reward) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each check by its name; it gives what was seen, and raises Differs for what differs."""
    lengths = (3, 1, 5, 2)
    yield SHAPES, partial(_shapes, provider, lengths)
    yield "alone as among others", partial(_alone, provider, lengths)
    yield "same twice", partial(_pure, provider, lengths)
    edges = {"log-probs of 0": 0.0, "log-probs of -1,000": -1e3, "log-probs of -1e30": -1e30}
    for name, value in edges.items():
        yield f"finite: {name}", partial(_edge, provider, lengths, value)
    yield "finite: no token to score", partial(_edge, provider, lengths, -1.0, masked=True)


def _tokens(lengths: Sequence[int], *, masked: bool = False) -> Tokens:
    mask = torch.tensor([t > 0 or length == 1 for length in lengths for t in range(length)])
    mask = torch.zeros_like(mask) if masked else mask
    ends = torch.tensor([t == length - 1 for length in lengths for t in range(length)])
    counts = torch.stack([part.sum() for part in torch.split(mask, list(lengths))]).float()
    return Tokens(mask, counts.repeat_interleave(torch.tensor(lengths)), ends)


def _columns(provider: Reward, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(count, generator=generator) - 2 for name in provider.reads}


def _values(provider: Reward, columns: dict[str, Tensor], tokens: Tokens) -> Tensor:
    values = as_tensor(provider.values(columns, tokens), "values")
    if values.shape != tokens.mask.shape or not values.is_floating_point():
        raise Differs(f"values must be [T] float, T = {len(tokens.mask)}, got {list(values.shape)} of {values.dtype}")
    return finished(values, tokens, transform=provider.transform, noise_std=0.0, noise=None)


def _shapes(provider: Reward, lengths: Sequence[int]) -> str:
    check_reads(provider)
    _values(provider, _columns(provider, sum(lengths)), _tokens(lengths))
    return f"values [T] of {', '.join(provider.reads) or 'nothing'}"


def _alone(provider: Reward, lengths: Sequence[int]) -> str:
    columns, tokens = _columns(provider, sum(lengths)), _tokens(lengths)
    together = torch.split(_values(provider, columns, tokens), list(lengths))
    parts = {name: torch.split(column, list(lengths)) for name, column in columns.items()}
    for i, length in enumerate(lengths):
        own = Tokens(*(torch.split(array, list(lengths))[i] for array in vars(tokens).values()))
        alone = _values(provider, {name: part[i] for name, part in parts.items()}, own)
        worst = find_worst(alone.double(), together[i].double(), 1e-6)
        if worst is not None:
            raise Differs(
                f"token {worst} of a response of {length}: the reward is {alone[worst]:.6g} alone and "
                f"{together[i][worst]:.6g} among others"
            )
    return f"{len(lengths)} responses"


def _pure(provider: Reward, lengths: Sequence[int]) -> str:
    columns, tokens = _columns(provider, sum(lengths)), _tokens(lengths)
    before = {name: column.clone() for name, column in columns.items()}
    first, second = _values(provider, columns, tokens), _values(provider, columns, tokens)
    changed = [name for name, column in columns.items() if not torch.equal(column, before[name])]
    if changed:
        raise Differs(f"the column {changed[0]} was changed; `values` must leave it as it is")
    if not torch.equal(first, second):
        raise Differs("the rewards differ; draw chance from the column 'noise', which is seeded")
    return ""


def _edge(provider: Reward, lengths: Sequence[int], value: float, *, masked: bool = False) -> str:
    columns = {name: torch.full_like(column, value) for name, column in _columns(provider, sum(lengths)).items()}
    rewards = _values(provider, columns, _tokens(lengths, masked=masked))
    bad = (~rewards.isfinite()).nonzero()
    if len(bad):
        raise Differs(f"token {int(bad[0])}: the reward is {rewards[bad[0]].item():.6g}")
    return ""
