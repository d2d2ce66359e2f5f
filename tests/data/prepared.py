"""Small preparations: a file of pairs, a tokenizer, and blocks of a few rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pyprefopt.data.files import parts
from pyprefopt.data.store.segments import SegmentStore

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def small_blocks() -> None:
    """Blocks of about eight rows."""
    parts.BLOCK_BYTES, parts.BLOCK_ROWS = 600, 8


def row(index: int) -> dict[str, Any]:
    return {"prompt": f"say {index}", "chosen": f"{index} it is" + "!" * (index % 7), "rejected": f"no, {index}"}


def write_pairs(path: Path, rows: int = 40, *, bad: tuple[int, ...] = ()) -> Path:
    """JSON lines; in the rows of `bad` the chosen response is empty."""
    lines = [row(index) | ({"chosen": ""} if index in bad else {}) for index in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_tokenizer(directory: Path) -> Path:
    """A byte-level tokenizer with a chat template, as a directory."""
    from tests.data.frames import byte_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(directory).rename(directory / "tokenizer.json")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def run(source: Any, tokenizer: Path, out: Path, **settings: Any) -> SegmentStore:
    from pyprefopt import data
    from pyprefopt.data.preparation.job import prepare

    return prepare(source, data.load_tokenizer(tokenizer), out, **settings)


def flip_a_bit(file: Path) -> None:
    """Damage that leaves the file's size, and all that its reader looks at first, as they were."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {os.fspath(path.relative_to(directory)): path.read_bytes() for path in files}
