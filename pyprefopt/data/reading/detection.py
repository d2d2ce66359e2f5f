"""Which format the rows of a source have, by its first rows; where none fits, the error says what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyprefopt.data.files.data_file import find_files
from pyprefopt.data.files.parts import Part, file_part
from pyprefopt.data.mixture import split_weights
from pyprefopt.data.reading.blocks import Block, parse_block
from pyprefopt.data.reading.catalog import FORMATS, TABLE, kind_of, unknown_format
from pyprefopt.data.reading.formats import (
    LABELS,
    LIKE_PROMPT,
    check_unlabelled,
    detected,
    listed,
    misread,
    nearest,
    suggest_columns,
)
from pyprefopt.data.reading.rejects import first_bad_row
from pyprefopt.errors import DataError, did_you_mean, option

_PLAIN = {"preferences": "preference", "candidates": "candidates", "instructions": "prompt_response"}  # of each kind
KINDS = tuple(_PLAIN)
_READERS = {  # of each kind
    "preferences": "data.read_preferences reads them",
    "candidates": "data.read_candidates reads them, --method rrhf trains on them",
    "ranked": "data.read_candidates reads them, --method rrhf trains on them",
    "instructions": "data.read_instructions reads them, training takes them as --base.data",
}


def detect_format(part: Part, wanted: str, kinds: Sequence[str]) -> tuple[str, Block]:
    """The rows' format: the one that is wanted, if a row fits it, or the one that most fit; and the first block."""
    known = [name for kind in kinds for name in FORMATS[kind]]
    if wanted != "auto" and wanted not in known:
        raise unknown_format(wanted, known)
    tried = known if wanted == "auto" else [wanted]
    first = next(part.small_blocks(_telling_columns(part)), None)
    if first is None:
        raise DataError(f"{part.name} holds no rows")
    block = Block(0, part.name, 0, *first)
    found, names, advice = detected(block.rows, tried, part.columns)
    if wanted == "auto":
        others = [name for names in FORMATS.values() for name in names if name not in known]
        other = None if found or not others else detected(block.rows, others, part.columns)[0]
        if (single := found or other) in FORMATS["instructions"]:
            check_unlabelled(block.rows, part.name, single)
        if other is not None:
            needed = TABLE[_PLAIN[kinds[0]]].show_needed()
            raise DataError(
                f"{part.name}: rows must be {kinds[0]} ({needed}), but are of format {other}; their "
                f"fields are {listed(names)}; {_READERS[kind_of(other)]}"
            )
    if found is None and not names and advice.startswith("; line "):
        raise DataError(part.name + advice.replace("; ", ", ", 1))
    if found is None:
        what = "no known schema" if wanted == "auto" else f"no row fits format '{wanted}'"
        columns = suggest_columns(block.rows, names, TABLE[_PLAIN[kinds[0]] if wanted == "auto" else wanted])
        wrong = "" if columns.named else misread(block.rows, names, part.file.container if part.file else "table")
        bad = show_bad_row(block, names, tried)
        advice = wrong or advice + (bad or (columns.text if columns.whole or not advice else ""))
        fitting = "" if wanted == "auto" else detected(block.rows, known, part.columns)[0] or ""
        remedy = f"they are of format {fitting}: leave format out" if fitting else f"see {option('format', '…')}"
        raise DataError(f"{part.name}: {what}; its fields are {listed(names)}{advice}; {remedy}")
    return found, block


def _telling_columns(part: Part) -> list[str] | None:
    """Of typed rows the columns by which a format is known; all where there are none."""
    known = {*LABELS, *LIKE_PROMPT, *(name for row in TABLE.values() for name in (*row.names, *row.weights))}
    return [name for name in part.columns or () if name in known] or None


def show_bad_row(block: Block, names: Sequence[str], formats: Sequence[str]) -> str:
    """What is wrong with the first bad row, if the rows have all fields of a format, or none is an object."""
    near, missing = nearest(names, formats)
    first = "" if names and missing else first_bad_row(parse_block(block, near).rejects)
    return f"; {first}" if first else ""


def columns_of(source: Any) -> set[str]:
    """The columns of all files that a list, a glob or a name means; of text files by their first rows."""
    files, _ = find_files(split_weights(source)[0])
    return {name for file in files for name in _columns_of(file_part(file))}


def _columns_of(part: Part) -> list[str]:
    if part.columns is not None:
        return part.columns
    first = next(part.small_blocks(), None)
    return [] if first is None else detected(first[0], [*TABLE])[1]


def check_columns(parts: Sequence[Part], mapping: Mapping[str, str]) -> None:
    """DataError for a column that no file has."""
    missing, seen = set(mapping.values()), list[str]()
    for part in parts:
        seen += _columns_of(part)
        missing -= set(seen)
        if not missing:
            return
    fields = list(dict.fromkeys(seen))
    ours, theirs = next((ours, theirs) for ours, theirs in mapping.items() if theirs in missing)
    more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    near = did_you_mean(theirs, fields)
    raise DataError(
        f"{parts[0].name}{more}: there is no column '{theirs}' for {ours}{near}; the columns are {listed(fields)}; "
        f"mend {option('columns')}"
    )
