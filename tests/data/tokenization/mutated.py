"""Tokenizer files that no one meant: cut, with other values in any place, nested deep."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

DEEP = 100_000
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**30, 1e308, -0.5, "", "a", "\0", "é", " ",
    "x" * 3000, [], {}, [[]], [None], {"a": 1}, {"type": "Sequence"}, {"type": "BPE"}, {"Regex": "("},
    {"Regex": "(a+)+$"}, {"Regex": "((a{1000}){1000}){1000}"}, {"Regex": ""}, {"String": ""}, {"Regex": "(?<!a*)b"},
    {"type": "FixedLength", "length": 0}, {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated",
    "invert": False}, {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, {"type": "Precompiled",
    "precompiled_charsmap": "AAAA"}, {"type": "Prepend", "prepend": "▁" * 2000}, {"type": "Strip", "strip_left": True,
    "strip_right": True}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
]  # fmt: skip


def bases() -> list[dict[str, Any]]:
    """Small files of every model, with normalizers, patterns and added tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("a", "b"), ("Ġ", "a")]
    made = [Tokenizer(models.BPE({t: i for i, t in enumerate([*letters, "ab", "Ġa"])}, pairs))]
    made[0].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.append(Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]")))
    made[1].normalizer, made[1].pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.append(Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("ab", -2.5)], 0, False)))
    made[2].normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made[2].pre_tokenizer = pre_tokenizers.Metaspace()
    made.append(Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, " b": 2}, unk_token="[UNK]")))
    made[3].pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+| "), "isolated")
    for tokenizer in made:
        tokenizer.add_special_tokens(["</s>", "<s>"])
        tokenizer.add_tokens(["<e>"])
    return [json.loads(tokenizer.to_str()) for tokenizer in made]


def mutations(file: Any, seed: int) -> Iterator[bytes]:
    """Endless bytes made of a JSON value."""
    chance = random.Random(seed)
    whole = json.dumps(file, ensure_ascii=False).encode()
    while True:
        kind = chance.random()
        if kind < 0.1:
            yield whole[: chance.randrange(len(whole))]
        elif kind < 0.2:
            changed = bytearray(whole)
            for _ in range(chance.randrange(1, 5)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            yield bytes(changed)
        else:
            value = copy.deepcopy(file)
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                value = _changed(value, chance)
            text = json.dumps(value, ensure_ascii=False)
            if kind > 0.97:
                text = text.replace(chance.choice(("null", "true", "false", '"a"')), "[" * DEEP + "]" * DEEP, 1)
            yield text.encode("utf-8", "surrogatepass")


def _changed(value: Any, chance: random.Random) -> Any:
    """The value with one place in it changed."""
    place, path = value, []
    while isinstance(place, dict | list) and place and chance.random() < 0.8:
        key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
        path.append((place, key))
        place = place[key]
    if not path:
        return value if chance.random() < 0.9 else copy.deepcopy(chance.choice(NASTY))
    owner, key = path[-1]
    doing = chance.random()
    if doing < 0.15:
        del owner[key]
    elif doing < 0.3 and isinstance(owner, list):
        owner.append(copy.deepcopy(owner[key]))
    elif doing < 0.4 and isinstance(owner, dict):
        owner[chance.choice(("", "type", "id", "content", "a", f"{key}2"))] = owner.pop(key)
    else:
        owner[key] = copy.deepcopy(chance.choice(NASTY))
    return value
