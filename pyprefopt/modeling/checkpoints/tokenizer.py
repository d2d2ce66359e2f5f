"""The tokenizer beside saved weights: written so that transformers' AutoTokenizer loads the same one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyprefopt.storage.files import copy_into

CONFIG = "tokenizer_config.json"
CLASS_FILE = "tokenizer_class.py"
SHOWN = 60  # characters of a text in an error


@dataclass(frozen=True)
class Expected:
    """What a tokenizer makes of texts and chats."""

    ids: Mapping[str, Sequence[int]]  # of texts, without special tokens added
    chats: Sequence[tuple[Mapping[str, Any], str]] = field(default_factory=list)  # of apply_chat_template, and its text


def write_tokenizer(directory: Path, files: Iterable[Path], expected: Expected) -> str | None:
    """Copy a tokenizer's files beside a config.json.

    For some model types AutoTokenizer takes a class of its own, whatever the files say, and this class divides texts in
    its own way. Where that gives other ids, the files name the class by `auto_map`, which goes first.

    Args:
        directory: with the config.json of the model.
        files: of the tokenizer.
        expected: what AutoTokenizer must make of texts and chats.

    Returns:
        What AutoTokenizer makes otherwise all the same; None: nothing.
    """
    for file in files:
        copy_into(file, directory)
    plain = _difference(directory, expected)
    if plain is None or not (directory / CONFIG).is_file():
        return plain
    before = (directory / CONFIG).read_bytes()
    named = json.loads(before) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": {"AutoTokenizer": [None, f"{Path(CLASS_FILE).stem}.PreTrainedTokenizerFast"]},
    }
    (directory / CONFIG).write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
    # Only who asks for remote code reads this file. A class of its own: transformers marks the one that auto_map names.
    (directory / CLASS_FILE).write_text(
        "import transformers\n\n\nclass PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):\n"
        '    """The tokenizer that tokenizer.json describes, whatever the model type."""\n'
    )
    if _difference(directory, expected) is None:
        return None
    (directory / CONFIG).write_bytes(before)
    (directory / CLASS_FILE).unlink()
    return plain


def _difference(directory: Path, expected: Expected) -> str | None:
    """What AutoTokenizer makes otherwise of the first text or chat; None: nothing."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any kind: it reads many files
        return f"AutoTokenizer cannot load it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    name = type(tokenizer).__name__
    for text, ids in expected.ids.items():
        theirs = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if theirs != list(ids):
            at = next((i for i, pair in enumerate(zip(theirs, ids, strict=False)) if pair[0] != pair[1]), 0)
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
            wrong = f"from token {at} the ids {theirs[at : at + 4]} instead of {list(ids[at : at + 4])}"
            return f"AutoTokenizer takes {name}, which gives {shown!r} {wrong}"
    for arguments, text in expected.chats:
        try:
            written = str(tokenizer.apply_chat_template(**arguments, tokenize=False))
        except Exception as error:  # of the template's own, too
            written = f"{type(error).__name__}: {error}"
        if written != text:
            return f"apply_chat_template of {name} writes {written[-SHOWN:]!r} at the end instead of {text[-SHOWN:]!r}"
    return None
