"""Values of one tokenization on the tokens of another, byte by byte: the slow twin of `data.align.transfer_values`."""

from __future__ import annotations

from typing import NamedTuple


class Token(NamedTuple):
    """A token of a response: its bytes in the content (None: the template's), its message, whether it takes part."""

    span: tuple[int, int] | None
    turn: int = 0
    scored: bool = True


def transfer(values: list[float], source: list[Token], target: list[Token]) -> list[float]:
    """As the docstring of `transfer_values` says, in float64, over every pair of tokens and every byte."""
    givers, takers = _places(source), _places(target)
    moved = [0.0] * len(target)
    if not takers:
        return moved
    for index, place in givers.items():
        peers = [i for i, other in givers.items() if other == place]
        same = [j for j, other in takers.items() if other == place]
        if len(peers) == len(same):
            moved[same[peers.index(index)]] += values[index]
            continue
        shares = dict.fromkeys(same, 1)
        if place[0] == 1:
            shares = {j: _common(place[2], other[2]) for j, other in takers.items() if other[0] == 1}
        whole = sum(shares.values())
        for j, share in shares.items():
            moved[j] += values[index] * share / whole if share else 0.0
        if whole == 0:
            order = sorted(takers, key=lambda j: (takers[j], j))
            moved[next((j for j in order if takers[j] >= place), order[-1])] += values[index]
    return moved


def _places(tokens: list[Token]) -> dict[int, tuple]:
    content = [i for i, token in enumerate(tokens) if token.span is not None]
    places = {}
    for i, token in enumerate(tokens):
        if not token.scored:
            continue
        if token.span is not None:
            places[i] = (1, 0, token.span)
        else:
            places[i] = (0 if not content or i < content[0] else 2, token.turn, (0, 0))
    return places


def _common(one: tuple[int, int], two: tuple[int, int]) -> int:
    return len(set(range(*one)) & set(range(*two)))
