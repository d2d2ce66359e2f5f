"""A prepared folder as text: counts, lengths, rejected rows, settings, and one row with its tokens in colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyprefopt.data.preparation.workspace import WORK, check_manifest
from pyprefopt.data.store.segments import KINDS, SegmentStore, ValueStore
from pyprefopt.data.tokenization.notes import SpecialToken, describe_notes
from pyprefopt.errors import ArtifactError, DataError, counted
from pyprefopt.storage.files import check_name
from pyprefopt.storage.folders import MANIFEST

BAR = 40  # characters of the longest bar
BINS = 12  # at most, in a histogram
_COLORS = {"prompt": "36", "chosen": "32", "rejected": "31", "response": "34", "template": "2", "cut": "33;1"}
_SELECTED = "7"  # reverse video, on top of the side's colour


def inspect(
    directory: str | Path, *, row: int | None = None, selection: str | Path | None = None, color: bool = False
) -> str:
    """Report on a folder of segments as text.

    Args:
        directory: made by `prepare`, or a split of a run's `stages/data`.
        row: position in the input of the row that is shown; None: the first one.
        selection: a ValueStore of bool for these segments; its tokens are marked.
        color: mark by ANSI colours instead of brackets.

    Returns:
        Counts, settings, histograms of lengths in tokens, and one row's tokens as text.

    Raises:
        ArtifactError: no finished folder, a damaged shard, or the selection was made for other segments.
        DataError: no such row.

    Example:
        >>> print(inspect("prepared", row=0))
    """
    check_name(directory)
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        if (directory / WORK).is_dir():
            raise ArtifactError(
                f"{directory} must be a finished folder, but its preparation was stopped, or found bad rows; give the "
                "same pyprefopt prepare command again: it goes on where it was, or shows the rows"
            )
        what = f"holds no {MANIFEST}" if directory.is_dir() else "is a file" if directory.exists() else "is not there"
        raise ArtifactError(
            f"{directory} must be a prepared folder, but it {what}; make one: pyprefopt prepare IN --tokenizer T --out "
            f"{directory}"
        )
    store = SegmentStore.open(directory, verify=True)
    if "rows_in" in store.manifest:
        check_manifest(store.manifest, directory)
    selected = None if selection is None else ValueStore.open(selection, verify=True).check(store)
    parts = [_counts(store, directory), *_histograms(store), _sample(store, directory, row, selected, color)]
    return "\n\n".join(parts)


def _counts(store: SegmentStore, directory: Path) -> str:
    manifest = store.manifest
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 2**20
    lines = [
        f"{directory}: {counted(store.num_rows, 'row')}, {counted(store.num_lines, 'segment')}, "
        f"{counted(int(store.lengths.sum()), 'token')}, {counted(len(manifest['shards']), 'shard')}, {size:,.1f} MiB"
    ]
    if "rows_in" in manifest:
        inputs = ", ".join(Path(entry["file"]).name if entry["file"] else "a frame" for entry in manifest["inputs"][:3])
        more = f" and {len(manifest['inputs']) - 3} more" if len(manifest["inputs"]) > 3 else ""
        rejected = sum(manifest["rejected"].values())
        lines.append(
            f"input      {inputs}{more} ({manifest['settings']['format']}): {counted(manifest['rows_in'], 'row')} in, "
            f"{manifest['rows']:,} used, {rejected:,} rejected"
        )
        lines += [f"  {reason}: {count:,}" for reason, count in manifest["rejected"].items()]
        lines.append(f"settings   {', '.join(_settings(manifest['settings']))}")
        if "tokenizer" in manifest:
            lines.append(f"tokenizer  {_identity(manifest['tokenizer'])}")
        lines.append(
            f"rows       {counted(manifest['responses_cut'], 'response')} cut to fit max_tokens, "
            f"{manifest['tokenized_apart']:,} with a token across the boundary"
        )
        scored = manifest["settings"]["score_reasoning"]
        told = describe_notes(manifest["notes"], SpecialToken.of(manifest), score_reasoning=scored)
        lines += [f"  {line}" for line in told]
    return "\n".join(lines)


def _identity(tokenizer: dict[str, Any]) -> str:
    """Its special tokens, EOS first, and the beginnings of the hashes by which two folders are compared."""
    special = tokenizer["special_tokens"]
    names = sorted(special, key=lambda name: (name != "eos_token", name))
    hashes = (("tokenizer.json", tokenizer["json"]), ("chat template", tokenizer["chat_template"]))
    shown = [f"{name} {special[name]}" for name in names] + [f"{name} sha256 {value[:12]}" for name, value in hashes]
    return ", ".join(shown)


def _settings(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        elif value != []:
            yield f"{prefix}{name} {' '.join(value) if isinstance(value, list) else value}"


def _histograms(store: SegmentStore) -> Iterator[str]:
    for code, kind in enumerate(KINDS):
        lengths = store.lengths[store.kinds == code]
        if lengths.size:
            yield histogram(lengths, kind)


def histogram(lengths: NDArray[np.int64], name: str) -> str:
    """Tokens of each segment as text bars, a line a range of lengths."""
    width = _nice((int(lengths.max()) + 1) / BINS)
    counts = np.bincount(lengths // width)
    first = int(np.flatnonzero(counts)[0])
    label = len(f"{len(counts) * width - 1:,}")
    title = f"{name}: median {np.median(lengths):,.0f} tokens, mean {lengths.mean():,.1f}, longest {lengths.max():,}"
    lines = [title]
    for index in range(first, len(counts)):
        bar = "#" * int(np.ceil(BAR * counts[index] / counts.max()))
        low, high = index * width, index * width + width - 1
        span = f"{low:>{label},}" if width == 1 else f"{low:>{label},} - {high:>{label},}"
        lines.append(f"  {span} |{bar:{BAR}} {counts[index]:,}")
    return "\n".join(lines)


def _nice(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor >= width:
                return step * factor
        step *= 10


@dataclass(frozen=True)
class _Style:
    kind: str  # a key of _COLORS
    selected: bool = False


def _sample(store: SegmentStore, directory: Path, row: int | None, selected: ValueStore | None, color: bool) -> str:
    rows = store.rows
    wanted = int(rows[0]) if row is None else row
    group = int(np.searchsorted(rows, wanted)) if wanted >= 0 else len(rows)
    if group == len(rows) or rows[group] != wanted:
        raise DataError(
            f"row must be one that the folder holds, got {wanted}; rows {rows[0]} to {rows[-1]} are there, but for "
            "the rejected ones (rejected.jsonl)"
        )
    decode = _decoder(directory)
    lines = []
    for line in range(store.group_offsets[group], store.group_offsets[group + 1]):
        lines.append(_segment(store, line, wanted, selected, decode, color))
    return "\n\n".join(lines)


def _segment(store: SegmentStore, line: int, row: int, selected: ValueStore | None, decode: Any, color: bool) -> str:
    entry = {name: store.table[name][line].as_py() for name in store.table.column_names}
    kind, ids, mask = entry["kind"], entry["ids"], entry["mask"]
    marks = None if selected is None else selected.values[line].as_py()
    facts = [counted(len(ids), "token")]
    if entry.get("cut"):
        facts.append(f"{entry['cut']:,} cut")
    if marks is not None:
        facts.append(f"{sum(marks):,} selected")
    if entry.get("score") is not None:
        facts.append(f"score {entry['score']:g}")
    styles = [
        _Style(kind if kind == "prompt" or mask[i] else "template", bool(marks and marks[i])) for i in range(len(ids))
    ]
    text = "".join(_paint(part, style, color) for part, style in _runs(ids, styles, decode))
    if entry.get("cut"):
        unit = store.manifest.get("settings", {}).get("truncation", {}).get("unit", "tokens")
        note = f"[... {counted(entry['cut'], unit.removesuffix('s'))} cut]"
        text += f"\x1b[{_COLORS['cut']}m{note}\x1b[0m" if color else note
    return f"row {row}, {kind} ({', '.join(facts)})\n{text}"


def _runs(ids: list[int], styles: list[_Style], decode: Any) -> Iterator[tuple[str, _Style]]:
    """Text and style of neighbouring tokens of one style; a character over two runs goes to the first."""
    done, position = "", 0
    for style, run in groupby(styles):
        position += len(list(run))
        text = decode(ids[:position])
        if text.endswith("\ufffd") and position < len(ids):
            text = text.rstrip("\ufffd")
        start = len(done) if text.startswith(done) else 0
        yield text[start:], style
        done = text if start == len(done) else done + text


def _paint(text: str, style: _Style, color: bool) -> str:
    shown = "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if color:
        return f"\x1b[{_COLORS[style.kind]}{';' + _SELECTED if style.selected else ''}m{shown}\x1b[0m"
    return f"[{shown}]" if style.selected else shown


def _decoder(directory: Path) -> Any:
    """From ids to text, by the tokenizer in the folder or beside it; ids as numbers where there is none."""
    for folder in (directory / "tokenizer", directory.parent / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    return lambda ids: "".join(f"{index} " for index in ids)
