"""User weights brought onto tokens in plain Python: exact fractions, one byte at a time."""

from __future__ import annotations

from fractions import Fraction

Place = tuple[int, int] | None  # bytes of a token in the content; None: the template's


def from_spans(text: str, spans: list[dict], places: list[Place]) -> list[float]:
    """The mean over each token's bytes that are no ASCII white space (over all where it has no other)."""
    by_byte: list[Fraction] = []
    for index, character in enumerate(text):
        inside = [span["weight"] for span in spans if span["start"] <= index < span["end"]]
        by_byte += [Fraction(inside[0]) if inside else Fraction(1)] * len(character.encode())
    content = text.encode()
    weights = []
    for place in places:
        covered = [] if place is None else list(range(*place))
        solid = [byte for byte in covered if content[byte : byte + 1] not in b" \t\n\v\f\r"] or covered
        weights.append(float(sum(by_byte[byte] for byte in solid) / len(solid)) if solid else 1.0)
    return weights


def from_list(given: list[float], places: list[Place]) -> list[float]:
    """One weight after another for the content's tokens, 1 for the template's."""
    left = iter(given)
    return [1.0 if place is None else next(left) for place in places]
