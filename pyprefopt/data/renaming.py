"""Columns under our names: `prompt=question` says that the prompt stands in the column question."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyprefopt.data import _native
from pyprefopt.errors import ConfigError, check, did_you_mean, option

if TYPE_CHECKING:
    import pyarrow as pa

_ENTRIES = re.compile(r"[^,=]+(,[^,=]+=[^,=]+)+")  # good,rejected=bad: several entries in one
CUT = (
    "chosen",
    "rejected",
    "responses",
    "completions",
    "candidates",
)  # columns of responses that a cut is noted beside
Pairs = tuple[tuple[str, str], ...]  # a column's name in the file, and the new one


def as_mapping(columns: Mapping[str, str] | Sequence[str] | None, known: Collection[str]) -> dict[str, str]:
    """Our name -> theirs, of a mapping, or of texts `ours=theirs` as the command line has them.

    Raises:
        ConfigError: an entry of another form, a name of ours that no format has, or a column that is named twice.

    Example:
        >>> as_mapping(["prompt=question", "chosen=good"], {"prompt", "chosen", "rejected"})
        {'prompt': 'question', 'chosen': 'good'}
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        columns = _split(columns)
    for ours, theirs in columns.items():
        is_text = isinstance(ours, str) and isinstance(theirs, str) and bool(theirs)
        check(is_text, "columns", f"{ours}={theirs}", "ours=yours, two names", "as prompt=question chosen=good")
        near = did_you_mean(ours, known)
        if ours not in known:
            theirs_first = f"; write {theirs}={ours}" if theirs in known else ""
            raise ConfigError(f"columns: '{ours}' is no name of ours, in '{ours}={theirs}'{theirs_first or near}")
    twice = next((name for name in columns.values() if list(columns.values()).count(name) > 1), None)
    check(twice is None, "columns", twice, "a column for one name each", "leave out one of the two")
    return dict(columns)


def _split(entries: Sequence[str]) -> dict[str, str]:
    """`ours=theirs` entries as a mapping."""
    entries = [entries] if isinstance(entries, str) else list(entries)
    pairs = [str(entry).partition("=")[::2] for entry in entries]
    for entry, (ours, theirs) in zip(entries, pairs, strict=True):
        check(bool(ours and theirs), "columns", entry, "ours=yours", "as prompt=question chosen=good rejected=bad")
        check(
            not _ENTRIES.fullmatch(theirs), "columns", entry, "one ours=yours each", "divide them by spaces, not commas"
        )
    twice = next((ours for ours, _ in pairs if [name for name, _ in pairs].count(ours) > 1), None)
    check(twice is None, "columns", twice, "given once for each name of ours", "leave out one of the two")
    return dict(pairs)


def as_words(mapping: Mapping[str, str]) -> tuple[str, ...]:
    """The mapping as the command line has it."""
    return tuple(f"{ours}={theirs}" for ours, theirs in mapping.items())


def written_as_option(mapping: Mapping[str, str]) -> str:
    """The setting `columns` as the user writes it.

    >>> written_as_option({"prompt": "question"})
    "columns={'prompt': 'question'}"
    """
    return option("columns", " ".join(as_words(mapping))) if option("x") != "x" else f"columns={dict(mapping)!r}"


def pairs_of(mapping: Mapping[str, str]) -> Pairs:
    """The new names; a column that has a name of ours without being meant is then `source_NAME`.

    What `data.truncate` has written beside a response (`good_cut`, `good_complete`) goes with it.
    """
    meant = {theirs: ours for ours, theirs in mapping.items() if ours != theirs}
    hidden = {ours: f"source_{ours}" for ours, theirs in mapping.items() if ours != theirs and ours not in meant}
    beside = {
        f"{theirs}_{what}": f"{ours}_{what}"
        for theirs, ours in meant.items() for what in ("cut", "complete")
        if ours in CUT and f"{ours}_{what}" not in mapping and f"{theirs}_{what}" not in meant
    }  # fmt: skip
    return tuple((beside | meant | hidden).items())


def renamed_rows(rows: pa.Array | pa.Table, pairs: Pairs) -> pa.Array | pa.Table:
    """Typed rows or JSON lines with their columns under the new names."""
    import pyarrow as pa

    if isinstance(rows, pa.Table):
        return rows.rename_columns(renamed(rows.column_names, pairs))
    lines: Any = _native.rename_fields(pa.chunked_array([rows]), list(pairs))
    return pa.Array.from_buffers(pa.uint8(), len(lines), [None, pa.py_buffer(lines)])


def renamed(names: Sequence[str], pairs: Pairs) -> list[str]:
    """The names, those of the pairs under the new ones."""
    new = dict(pairs)
    return [new.get(name, name) for name in names]
