"""Rotary positions whose frequencies follow the longest position of a call: computed for each document on its own.

longrope and dynamic NTK scaling choose frequencies by the longest position that they are called with, and the second
remembers it for later calls. In a pack that position is another document's. Which modules do so is seen from what
they compute, not from their names: the first rows of a call change with its last position.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pyprefopt.errors import ConfigError

_ROWS, _LAST = 4, 2**24  # rows that are compared, and the last position that is tried


class _Document(NamedTuple):
    """A run of positions without a gap: a document, or a response that goes on behind a shared prompt."""

    start: int  # in the pack
    stop: int
    first: int  # its first position

    @property
    def length(self) -> int:
        """Tokens of the document that it ends."""
        return self.first + self.stop - self.start


def give_documents_their_own(model: nn.Module) -> None:
    """Let every module below `model` whose rows depend on the longest position compute each document as if alone.

    Packs whose documents are all as long as those that get the usual frequencies go through it in one call.
    """
    for module in model.modules():
        if not isinstance(module, _ByDocument) and _takes_positions(module):
            longest = _longest_alike(module)
            if longest is not None:
                module.__class__ = _by_document(type(module))  # type: ignore[arg-type]
                module.longest_alike = longest  # type: ignore[assignment]


def longest_alike(model: nn.Module) -> int | None:
    """The longest document, in tokens, whose positions are rotated as those of all shorter ones; None: every one."""
    found = [int(module.longest_alike) for module in model.modules() if isinstance(module, _ByDocument)]
    return min(found, default=None)


class _ByDocument(nn.Module):
    """What a module that is called with positions becomes; before it in the order of its classes."""

    longest_alike: int

    def forward(self, inputs: Tensor, position_ids: Tensor, *rest: Any, **options: Any) -> Any:
        """As the module, for each document of [1, N] positions on its own."""

        def call(positions: Tensor) -> tuple[Tensor, ...]:
            with _unchanged(self):
                made = super(_ByDocument, self).forward(inputs, positions, *rest, **options)
            return made if isinstance(made, tuple) else (made,)

        def rows(document: _Document, length: int) -> tuple[Tensor, ...]:
            """Of a part of a document of `length` tokens."""
            count, own = document.stop - document.start, position_ids[:, document.start : document.stop]
            return tuple(part[:, :count] for part in call(torch.cat([own, own.new_full((1, 1), length - 1)], dim=1)))

        is_pack = position_ids.ndim == 2 and len(position_ids) == 1
        if not is_pack or int(position_ids.max()) < self.longest_alike:
            made = call(position_ids)
        else:
            parts = [
                rows(document, self._length(document, behind, rows))
                for document, behind in _documents(position_ids[0].tolist())
            ]
            made = tuple(torch.cat(of_all, dim=1) for of_all in zip(*parts, strict=True))
        return made if len(made) > 1 else made[0]

    def _length(self, document: _Document, behind: list[_Document], rows: Any) -> int:
        """The length whose frequencies a document gets: its own, of a shared prompt that of its responses.

        Raises:
            ConfigError: they differ between the responses of a prompt that stands once.
        """
        if not behind:
            return document.length
        prompt = behind[0].first
        lengths = sorted({part.length for part in behind} | ({document.length} if document.length > prompt else set()))
        shared = document._replace(stop=document.start + prompt)
        wanted = rows(shared, lengths[0])
        for length in lengths[1:]:
            if not all(torch.equal(a, b) for a, b in zip(wanted, rows(shared, length), strict=True)):
                raise ConfigError(
                    f"layout must be separate for documents of more than {self.longest_alike} tokens, whose positions "
                    f"{type(self).__name__} rotates by their lengths: responses that end documents of {lengths[0]} "
                    f"and {length} tokens share a prompt; set layout separate"
                )
        return lengths[0] if document.length == prompt else document.length


@lru_cache
def _by_document(kind: type[nn.Module]) -> type[_ByDocument]:
    return cast("type[_ByDocument]", type(kind.__name__, (_ByDocument, kind), {"__module__": kind.__module__}))


def _documents(positions: list[int]) -> Iterator[tuple[_Document, list[_Document]]]:
    """The runs of a pack's positions, each with those that go on behind a part of it, in order."""
    starts = [at for at, position in enumerate(positions) if at == 0 or position != positions[at - 1] + 1]
    runs = [
        _Document(start, stop, positions[start])
        for start, stop in zip(starts, [*starts[1:], len(positions)], strict=True)
    ]
    behind: dict[int, list[_Document]] = {}
    root = runs[0]
    for run in runs:
        if 0 < run.first <= root.stop - root.start and run is not root:
            behind.setdefault(root.start, []).append(run)
        else:
            root = run
    return ((run, behind.get(run.start, [])) for run in runs)


def _takes_positions(module: nn.Module) -> bool:
    """Whether a module computes from positions alone, without weights."""
    if next(module.parameters(), None) is not None:
        return False
    return list(inspect.signature(type(module).forward).parameters)[2:3] == ["position_ids"]


def _longest_alike(module: nn.Module) -> int | None:
    """Of one module; None where the last position changes no other row, or the module does not give a row for each."""
    try:
        found = [_longest_of_kind(module, kind) for kind in _kinds(module)]
    except Exception:  # whatever a module raises that wants something else; the proof sees what it computes
        return None
    return min((length for length in found if length is not None), default=None)


def _kinds(module: nn.Module) -> list[dict[str, str]]:
    """The options of each kind of layer that a module tells apart."""
    if "layer_type" not in inspect.signature(type(module).forward).parameters:
        return [{}]
    kinds = getattr(module, "rope_type", None)
    kinds = kinds if isinstance(kinds, dict) else getattr(getattr(module, "config", None), "layer_types", None) or ()
    return [{"layer_type": kind} for kind in sorted(set(kinds))]


@torch.no_grad()
def _longest_of_kind(module: nn.Module, kind: dict[str, str]) -> int | None:
    def first_rows(last: int) -> list[Tensor]:
        positions = torch.tensor([[*range(_ROWS), last]], device=device)
        with _unchanged(module):
            made = module(torch.zeros(1, _ROWS + 1, 1, device=device), positions, **kind)
        parts = list(made) if isinstance(made, tuple) else [made]
        if not all(part.shape[1] == _ROWS + 1 for part in parts):
            raise ValueError("not a row for each position")
        return [part[:, :_ROWS] for part in parts]

    def is_same(last: int) -> bool:
        return all(torch.equal(a, b) for a, b in zip(usual, first_rows(last), strict=True))

    device = next(module.buffers(), torch.zeros(0)).device
    usual, low, high = first_rows(_ROWS), _ROWS, 2 * _ROWS
    while is_same(high):
        low, high = high, 2 * high
        if high > _LAST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_same(middle) else (low, middle)
    return low + 1  # tokens of a document whose last position is `low`


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """What a call leaves in a module, attributes and buffers, is gone afterwards."""
    attributes, buffers = dict(vars(module)), dict(module._buffers)
    numbers = {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}
    try:
        yield
    finally:
        module.__dict__.clear()
        module.__dict__.update(attributes)
        module._buffers.clear()
        module._buffers.update(buffers)
        for name, before in numbers.items():
            buffer = buffers[name]
            assert buffer is not None  # noqa: S101
            with torch.no_grad():
                buffer.copy_(before)
