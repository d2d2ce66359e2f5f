"""Slow twins of truncation and selection: Unicode's boundaries rule by rule, shares as fractions, sorting."""

from __future__ import annotations

import math
import re
from fractions import Fraction

# Characters of every class that the rules of UAX #29 tell apart (but Hebrew, Thai and emoji sequences).
WORD_CLASSES = {
    **dict.fromkeys("aBéж", "L"), **dict.fromkeys("12", "N"), **dict.fromkeys("アカ", "K"), "_": "_", "'": "Q",
    ".": "Q", ",": ",", ":": ":", " ": " ", "\n": "\n", "\u0301": "+", **dict.fromkeys("中文あ!-", "o"),
}  # fmt: skip
SENTENCE_CLASSES = {
    **dict.fromkeys("aé", "l"), **dict.fromkeys("BC", "U"), **dict.fromkeys("中文", "O"), "1": "N", ".": "A",
    **dict.fromkeys("!?。", "S"), **dict.fromkeys(",-", "C"), " ": "P", **dict.fromkeys('")»', "X"), "\n": "E",
    "\u0301": "+", "/": "o",
}  # fmt: skip


def clusters(text, classes):
    """(class, start, end): combining marks belong to what they follow, unless that is a line break (WB4, SB5)."""
    found = []
    for at, character in enumerate(text):
        kind = classes[character]
        if kind == "+" and found and found[-1][0] not in "\nE":
            found[-1] = (found[-1][0], found[-1][1], at + 1)
        else:
            found.append(("o" if kind == "+" else kind, at, at + 1))
    return found


def pieces(text, classes, joined):
    """(start, end) of what lies between the boundaries."""
    parts = clusters(text, classes)
    kinds = "".join(kind for kind, _, _ in parts)
    starts = [start for i, (_, start, _) in enumerate(parts) if i == 0 or not joined(kinds[:i], kinds[i:])]
    return list(zip(starts, [*starts[1:], len(text)], strict=False))


def same_word(before, after):
    last, first = before[-1], after[0]
    letters, numbers = {last, first} <= {"L"}, {last, first} <= {"N"}
    return (
        last == first == " "  # WB3d
        or letters or numbers or {last, first} == {"L", "N"}  # WB5, 8, 9, 10
        or (last == "L" and re.match("[:Q]L", after)) or (first == "L" and re.search("L[:Q]$", before))  # WB6, 7
        or (last == "N" and re.match("[,Q]N", after)) or (first == "N" and re.search("N[,Q]$", before))  # WB11, 12
        or last == first == "K"  # WB13
        or (first == "_" and last in "LNK_") or (last == "_" and first in "LNK")  # WB13a, b
    )  # fmt: skip


def same_sentence(before, after):
    first = after[0]
    if before[-1] == "E":  # SB4
        return False
    if (before[-1] == "A" and first == "N") or (re.search("[Ul]A$", before) and first == "U"):  # SB6, 7
        return True
    if re.search("AX*P*$", before) and re.match("[^OUlEAS]*l", after):  # SB8
        return True
    if re.search("[AS]X*P*$", before) and first in "CAS":  # SB8a
        return True
    if (re.search("[AS]X*$", before) and first in "XPE") or (re.search("[AS]X*P*$", before) and first in "PE"):  # 9, 10
        return True
    return not re.search("[AS]X*P*E?$", before)  # SB11


def unit_ends(text, unit):
    """Where each unit of the text ends."""
    if unit == "characters":
        return list(range(1, len(text) + 1))
    if unit == "words":
        found = pieces(text, WORD_CLASSES, same_word)
        return [end for start, end in found if any(c.isalnum() for c in text[start:end])]
    found = pieces(text, SENTENCE_CLASSES, same_sentence)
    return [start + len(text[start:end].rstrip()) for start, end in found if text[start:end].strip()]


def share(ratio, length, rounding):
    """`ratio * length` as a whole number, with the ratio as the decimal fraction that the user wrote."""
    exact = Fraction(str(ratio)) * length + (Fraction(1, 2) if rounding == "half_up" else 0)
    near = round(exact)
    if abs(exact - near) <= Fraction(1, 10**12) * max(near, 1):  # a third of 6 is 2
        return near
    return (math.ceil if rounding == "ceil" else math.floor)(exact)


def kept(own, ratio, length, rounding, base=None):
    """Units kept."""
    wanted = length if ratio is None else share(ratio, own if base is None else base, rounding)
    return min(own, max(1, wanted))


def cut_text(text, unit, ratio, length, rounding, base=None):
    """The text's kept part and the number of units that went."""
    ends = unit_ends(text, unit)
    left = kept(len(ends), ratio, length, rounding, base)
    return (text, 0) if left == len(ends) else (text[: ends[left - 1]], len(ends) - left)


def how_many(ratio, candidates, rounding="half_up", minimum=1):
    """Tokens selected."""
    return min(candidates, max(minimum, share(ratio, candidates, rounding)))


def best(values, candidates, count, largest):
    """The `count` best candidates as a mask; the earlier of two equals."""
    ranked = sorted(candidates, key=lambda i: (-values[i] if largest else values[i], i))
    return [i in ranked[:count] for i in range(len(values))]


def free(length, mask=None, ids=None, excluded=()):
    """The tokens that may be selected."""
    return [i for i in range(length) if (mask is None or mask[i]) and (ids is None or ids[i] not in excluded)]


def top_k(scores, ratio, largest=True, mask=None, rounding="half_up", minimum=1, ids=None, excluded=()):
    candidates = free(len(scores), mask, ids, excluded)
    return best(scores, candidates, how_many(ratio, len(candidates), rounding, minimum), largest)


def threshold(scores, limit, largest=True, mask=None, minimum=0, ids=None, excluded=()):
    candidates = free(len(scores), mask, ids, excluded)
    beyond = sum(scores[i] >= limit if largest else scores[i] <= limit for i in candidates)
    return best(scores, candidates, min(len(candidates), max(minimum, beyond)), largest)


def splitmix(x):
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def random(length, ratio, seed, row, segment=0, mask=None, rounding="half_up", minimum=1, ids=None, excluded=()):
    key = splitmix(splitmix(splitmix(seed) ^ row) ^ segment)
    values = [splitmix((key + t) % 2**64) >> 32 for t in range(length)]
    candidates = free(length, mask, ids, excluded)
    return best(values, candidates, how_many(ratio, len(candidates), rounding, minimum), largest=False)
