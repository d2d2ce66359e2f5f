"""A process that reads what it is told to, and says what came of it: one JSON line for each line of its input."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from pyprefopt import data
from pyprefopt.data.preparation.report import inspect
from pyprefopt.data.reading.frames import scan_preferences
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import PyprefoptError

MEMORY = 12 << 30  # bytes of addresses, of which threads take many


def read(path: Path, _: Any) -> None:
    found = scan_preferences(path)
    assert found.frame.height + found.rejects.height == found.rows_in


def tokenize(path: Path, tokenizer: Any) -> None:
    segments = data.tokenize(path, tokenizer, on_error="skip")
    if segments.height:
        data.pack(segments, max_tokens=1 << 20)


def truncate(path: Path, _: Any) -> None:
    data.truncate(path, length=2, unit="words", overwrite=True)


def prepare(path: Path, tokenizer: Any) -> None:
    store = data.prepare(path, tokenizer, path.parent / "prepared", on_error="skip", overwrite=True)
    assert store.num_rows == store.manifest["rows"]


def look(path: Path, tokenizer: Any) -> None:
    inspect(path)
    store = SegmentStore.open(path, verify=True)
    data.pack(store, max_tokens=1 << 20)


def again(path: Path, tokenizer: Any) -> None:
    data.prepare(path.parent / "pairs.jsonl", tokenizer, path, overwrite=True)


def abort(_: Path, __: Any) -> None:
    os.abort()


def sleep(_: Path, __: Any) -> None:
    time.sleep(1000)


def fail(_: Path, __: Any) -> None:
    raise KeyError("chosen")


ENTRIES = {"read": read, "tokenize": tokenize, "truncate": truncate, "prepare": prepare, "look": look, "again": again}
ENTRIES |= {"abort": abort, "sleep": sleep, "raise": fail}  # by which the net itself is tested


def outcome(entry: str, path: Path, tokenizer: Any) -> tuple[str, str]:
    """right, refused, or raised; and what was said."""
    try:
        ENTRIES[entry](path, tokenizer)
    except PyprefoptError as error:
        return "refused", str(error)
    except BaseException as error:
        return "raised", f"{type(error).__name__}: {error}"
    return "right", ""


def main() -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tokenizer = data.load_tokenizer(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        entry, path = json.loads(line)
        print(json.dumps(outcome(entry, Path(path), tokenizer)), flush=True)


if __name__ == "__main__":
    main()
