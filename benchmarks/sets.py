"""Benchmark sets from real pairs: as many copies as needed, in each of them some words exchanged, seeded.

Plain repetition would flatter every cache; an exchanged word is another word of the same corpus, the same one wherever
it stands in a copy, so that chosen and rejected keep their shared prefix.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SHARED = Path(os.environ.get("PYPREFOPT_SHARED", Path(__file__).parents[2] / "shared"))
TOKENIZER = SHARED / "data/tokenizers/gpt-neox-20b.json"
EXCHANGED = 0.15  # share of the vocabulary that is another word in a copy
WORD = re.compile(r"([A-Za-z]{2,})")

Message = dict[str, str]
Pair = tuple[list[Message], str, str]  # the prompt's messages, the chosen and the rejected answer


def write_sets(directory: Path, pairs: int, names: tuple[str, ...] = ("hh", "long")) -> dict[str, Path]:
    """`{name}-{pairs}.jsonl` in `directory`, made where it is not there yet."""
    return {name: write_set(directory / f"{name}-{pairs}.jsonl", name, pairs) for name in names}


def write_set(path: Path, name: str, pairs: int) -> Path:
    """HH transcripts (`hh`), or pairs of message lists (`long`), as JSON lines."""
    if path.exists():
        return path
    partial = path.with_suffix(".partial")
    line = _transcripts if name == "hh" else _messages
    with partial.open("w", encoding="utf-8") as file:
        for pair in _copies(_hh_pairs() if name == "hh" else _long_pairs(), pairs):
            file.write(json.dumps(line(pair), ensure_ascii=False) + "\n")
    return partial.rename(path)


def _copies(originals: list[Pair], pairs: int) -> Iterator[Pair]:
    """The originals as they are, then copies with exchanged words, until there are `pairs`."""
    words = {word for pair in originals for text in _texts(pair) for word in WORD.findall(text)}
    vocabulary = sorted(words - {"Human", "Assistant"})  # these make turns
    made = 0
    for copy in count():
        rng = random.Random(copy)  # noqa: S311
        exchange = {w: rng.choice(vocabulary) for w in vocabulary if copy and rng.random() < EXCHANGED}
        for prompt, chosen, rejected in originals:
            if made == pairs:
                return
            copied = _exchanged(chosen, exchange), _exchanged(rejected, exchange)
            if copied[0] != copied[1]:
                yield [m | {"content": _exchanged(m["content"], exchange)} for m in prompt], *copied
                made += 1


def _exchanged(text: str, exchange: dict[str, str]) -> str:
    return "".join([exchange.get(part, part) for part in WORD.split(text)])


def _texts(pair: Pair) -> list[str]:
    return [*(message["content"] for message in pair[0]), *pair[1:]]


def _transcripts(pair: Pair) -> dict[str, Any]:
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    prompt = "".join(names[m["role"]] + m["content"] for m in pair[0]) + names["assistant"]
    return {"chosen": prompt + pair[1], "rejected": prompt + pair[2]}


def _messages(pair: Pair) -> dict[str, Any]:
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in pair[1:])
    return {"prompt": pair[0], "chosen": chosen, "rejected": rejected}


def _turns(messages: list[Message]) -> bool:
    """User and assistant by turns, nothing empty, none with spaces around: what all sides understand alike."""
    roles = ["user", "assistant"] * len(messages)
    return all(m["role"] == role and m["content"].strip() for m, role in zip(messages, roles, strict=False))


def _hh_pairs() -> list[Pair]:
    """HH transcripts that differ in their last answer alone."""
    pairs = []
    with gzip.open(SHARED / "data/hh-rlhf-harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            chats = []
            for side in ("chosen", "rejected"):
                parts = re.split(r"\n\n(Human|Assistant): ?", row[side])[1:]
                roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
                texts = [text.strip() for text in parts[1::2]]
                chats.append([{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)])
            chosen, rejected = chats
            if chosen[:-1] == rejected[:-1] and chosen != rejected and _turns(chosen) and _turns(rejected):
                pairs.append((chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]))
    return pairs


def _long_pairs() -> list[Pair]:
    """Chats with answers of some 2,000 characters and more: ShareGPT's, and two to three Alpaca pairs put together."""
    with gzip.open(SHARED / "data/sharegpt-dpo-en.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    roles = {"human": "user", "gpt": "assistant"}
    pairs: list[Pair] = []
    for row in rows:
        prompt = [{"role": roles.get(m["from"], "system"), "content": m["value"].strip()} for m in row["conversations"]]
        answers = [row[side]["value"].strip() for side in ("chosen", "rejected")]
        if _turns(prompt) and len(prompt) % 2 and all(answers) and answers[0] != answers[1]:
            pairs.append((prompt, *answers))
    table = pq.read_table(SHARED / "data/alpaca-pairs-train.parquet").to_pylist()
    random.Random(0).shuffle(table)  # noqa: S311
    for one, two, three in zip(table[::3], table[1::3], table[2::3], strict=False):
        texts = [[row[side][-1]["content"].strip() for row in (one, two, three)] for side in ("chosen", "rejected")]
        prompt = [{"role": "user", "content": one["prompt"].strip()}]
        if len(pairs) % 2:  # an earlier turn
            prompt = [
                {"role": "user", "content": three["prompt"].strip()},
                {"role": "assistant", "content": texts[0][2]},
                *prompt,
            ]
        if all(map(all, texts)) and _turns(prompt):
            pairs.append((prompt, "\n\n".join(texts[0][:2]), "\n\n".join(texts[1])))
    return pairs
