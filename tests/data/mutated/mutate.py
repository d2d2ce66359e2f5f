"""Valid content made invalid, by a seed: bits, lengths, cuts, swapped and repeated blocks, fields of JSON."""

from __future__ import annotations

import json
import random
from typing import Any

LENGTHS = (0, 1, -1, 2**31 - 1, -(2**31), 2**40, -8, 255, 65536, 7)
TEXTS = (b"\xff", b"\0", b'"', b"[" * 3000, b"{", b",", b"\n", b"\r", b"\xed\xa0\x80", b"\\u", b"null", b"1e999", b"\t")
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e300, "", "é\ud800", [], {}, [None], [[[]]], {"": None}, "../../etc/passwd", "a" * 5000,
)  # fmt: skip


def mutate(content: bytes, seed: int) -> bytes:
    """One to three changes."""
    chance = random.Random(seed)
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        chance.choice(CHANGES)(changed, chance)
    return bytes(changed)


def _place(content: bytearray, chance: random.Random) -> int:
    """Anywhere, more often near the ends, where the lengths of files stand."""
    size = max(1, len(content))
    near = min(size, 400)
    return chance.choice((chance.randrange(size), chance.randrange(near), size - 1 - chance.randrange(near)))


def _flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 4))):
        if content:
            content[_place(content, chance)] ^= 1 << chance.randrange(8)


def _length(content: bytearray, chance: random.Random) -> None:
    width = chance.choice((4, 8))
    at = _place(content, chance) // 4 * 4
    number = chance.choice(LENGTHS) & ((1 << 8 * width) - 1)
    content[at : at + width] = number.to_bytes(width, "little")


def _cut(content: bytearray, chance: random.Random) -> None:
    at = _place(content, chance)
    if chance.random() < 0.5:
        del content[at:]
    else:
        del content[at : at + chance.choice((1, 2, 8, 64))]


def _swap(content: bytearray, chance: random.Random) -> None:
    width, first, second = chance.choice((4, 8, 64)), _place(content, chance), _place(content, chance)
    one, two = content[first : first + width], content[second : second + width]
    if len(one) == len(two):
        content[first : first + width], content[second : second + width] = two, one


def _repeat(content: bytearray, chance: random.Random) -> None:
    at, width = _place(content, chance), chance.choice((1, 8, 64, 300))
    content[at:at] = content[at : at + width] * chance.choice((1, 2, 50))


def _insert(content: bytearray, chance: random.Random) -> None:
    at = _place(content, chance)
    content[at:at] = chance.choice(TEXTS)


def _number(content: bytearray, chance: random.Random) -> None:
    if content:
        content[_place(content, chance)] = chance.choice((0, 1, 127, 128, 255))


CHANGES = (_flip, _flip, _length, _length, _cut, _swap, _repeat, _insert, _number)


def footer_bits(content: bytes) -> int:
    """The bits of a Parquet file's footer, with its length and the mark behind it."""
    return 8 * (8 + int.from_bytes(content[-8:-4], "little"))


def flip_footer(content: bytes, bit: int) -> bytes:
    """One bit of a Parquet file's footer turned."""
    changed = bytearray(content)
    changed[len(content) - footer_bits(content) // 8 + bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def mutate_json(content: bytes, seed: int) -> bytes:
    """One value, name or bracket of a JSON text changed."""
    chance = random.Random(seed)
    if chance.random() < 0.1:
        return chance.choice((b"[" * 100_000, b'{"a":' * 100_000, b"", b"\xff", b"null", b"[]", b'"', b"1" * 5000))
    whole = json.loads(content)
    places: list[tuple[Any, Any]] = []
    pending = [whole]
    while pending:
        held = pending.pop()
        entries = list(held.items() if isinstance(held, dict) else enumerate(held))
        places += [(held, key) for key, _ in entries]
        pending += [value for _, value in entries if isinstance(value, dict | list)]
    for _ in range(chance.choice((1, 1, 2))):
        held, key = chance.choice(places)
        if chance.random() < 0.3 and isinstance(held, dict):
            held.pop(key, None)
        elif isinstance(held, dict) or key < len(held):
            held[key] = chance.choice(VALUES)
    return json.dumps(whole).encode("utf-8", "surrogatepass")
