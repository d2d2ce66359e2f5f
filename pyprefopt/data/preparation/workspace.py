"""The folder of a preparation while it is made: which shards are there, for which key, and what is still missing.

Everything unfinished lies in `.work`: the key, and a record of each shard, written after the shard. A killed run
leaves the folder without a manifest; the next one of the same key checks the recorded shards and makes the rest.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.reading.catalog import TABLE
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.store.shards import (
    SHARD,
    Shard,
    check_shards,
    damaged,
    finish_store,
    misnamed,
    shard_name,
    write_shard,
)
from pyprefopt.errors import ArtifactError, option
from pyprefopt.storage.files import atomic_write, remove_leftovers, write_json
from pyprefopt.storage.folders import MANIFEST, Folder
from pyprefopt.storage.locks import LOCK
from pyprefopt.storage.shape import Shape, misfit

if TYPE_CHECKING:
    from pyprefopt.data.preparation.block import PreparedBlock

WORK, REJECTED, TOKENIZER = ".work", "rejected.jsonl", "tokenizer"
_OURS = (LOCK, WORK, REJECTED, TOKENIZER, MANIFEST)

logger = logging.getLogger("pyprefopt")


class Workspace(Folder):
    """A folder that is being prepared. The caller holds its lock."""

    pending_file = f"{WORK}/key.json"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.work = directory / WORK
        self.records: dict[int, dict[str, Any]] = {}  # shards that are there, by index

    def check_ours(self) -> None:
        """ArtifactError where the folder holds files that no preparation made."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        begun = WORK in names or MANIFEST in names  # there from the first file to the last
        ours = (lambda name: name in _OURS or _is_shard(name)) if begun else (lambda name: name == LOCK)
        foreign = [name for name in names if not ours(name)]
        if foreign:
            raise ArtifactError(f"{self} holds other files ({', '.join(foreign[:3])}); choose a new or empty folder")

    def finished(self) -> dict[str, Any] | None:
        """The manifest, if the folder is finished; an empty one where it is damaged."""
        try:
            manifest = self.find_manifest()
        except ArtifactError:
            return {}
        return manifest if manifest is None or _is_sound(manifest, self.path) else {}

    def check_shards(self, manifest: dict[str, Any]) -> None:
        """ArtifactError where a shard is missing, or its bytes are not those that were written."""
        check_shards(self.path, manifest["shards"], f"prepare again with {option('overwrite', True)}")

    def take(self, key: str, made_from: dict[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder ready for `key`: keep the shards that are its own, clear away everything else.

        made_from: what the key is of, as manifests have it.

        ArtifactError where a finished folder of another key, or a damaged one, is there, unless `overwrite`.
        """
        manifest = self.finished()
        if manifest == {} and not overwrite:
            raise ArtifactError(
                f"{self.path / MANIFEST} is damaged: it is not what prepare wrote; make the folder again: "
                f"{option('overwrite', True)}, or choose another folder"
            )
        if manifest is not None and not overwrite:
            raise ArtifactError(
                f"{self} was made otherwise: {_differences(manifest, made_from)}; choose another folder, or "
                f"replace it: {option('overwrite', True)}"
            )
        if manifest is not None:
            self.clear()
        if self.begin({"key": key}) or manifest is not None:
            logger.info("%s: input, tokenizer or settings changed, made again", self)
        self.records = {record["index"]: record for record in self._recorded()}

    def clear(self) -> None:
        """Remove everything that a preparation makes: the manifest first, what marks the folder as ours last."""
        self.work.mkdir(exist_ok=True)
        self.reopen()
        for path in self.path.iterdir():
            if path.name == REJECTED or _is_shard(path.name):
                path.unlink()
        shutil.rmtree(self.path / TOKENIZER, ignore_errors=True)
        shutil.rmtree(self.work)
        self.work.mkdir()
        self.records = {}

    def abandon(self) -> None:
        """Leave the folder as if nothing had begun: there is nothing to go on with."""
        self.clear()
        shutil.rmtree(self.work)

    def commit(self, block: PreparedBlock) -> None:
        """Keep a shard: its content, its rejected rows, then its record."""
        record = block.record()
        if block.lines:
            name = shard_name("segments", block.index)
            record["shard"] = write_shard(self.path, name, block.shard, lines=block.lines)
        if block.rejects:
            atomic_write(self._rejects(block.index), block.rejects)
        write_json(self.work / f"{block.index:05d}.json", record)
        self.records[block.index] = record

    def shards(self) -> list[Shard]:
        """The shards that have lines, as the manifest names them."""
        records = [self.records[index] for index in sorted(self.records)]
        return [record["shard"] | {"first_row": record["first_row"]} for record in records if record["lines"]]

    def rejected(self) -> Iterator[Path]:
        """The files of rejected rows, in the order of the input."""
        return (self._rejects(index) for index in sorted(self.records) if self.records[index]["rejected"])

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write `rejected.jsonl`, then the manifest; then nothing else is needed."""
        if any(record["rejected"] for record in self.records.values()):
            atomic_write(self.path / REJECTED, self._copy_rejected)
        finish_store(self.path, "segments", self.shards(), manifest)
        self.tidy()

    def tidy(self) -> None:
        """Clear away what a finished folder does not need."""
        shutil.rmtree(self.work, ignore_errors=True)
        remove_leftovers(self.path)
        remove_leftovers(self.path / TOKENIZER)

    def _copy_rejected(self, target: Any) -> None:
        for path in self.rejected():
            with path.open("rb") as source:
                shutil.copyfileobj(source, target)

    def _recorded(self) -> Iterator[dict[str, Any]]:
        """Sound records whose shard and rejected rows are there, bit by bit."""
        remove_leftovers(self.work)
        for path in sorted(self.work.glob("[0-9]*.json")):
            try:
                record = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                continue
            if misfit(record, _RECORD) or (record["lines"] and misfit(record, {"shard": SHARD})):
                continue
            parts = {record["shard"]["file"]: record["shard"]["sha256"]} if record["lines"] else {}
            if record["rejected"]:
                parts[str(self._rejects(record["index"]).relative_to(self.path))] = record["rejects_sha256"]
            if self.altered(parts) is None:
                yield record

    def _rejects(self, index: int) -> Path:
        return self.work / f"{index:05d}.rejected"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`max_tokens was 1500, is now 2048`: in what the manifest `old` differs from what would be made now."""
    was, now = _describe_key(old), _describe_key(json.loads(json.dumps(new)))  # tuples become lists, as in the manifest
    names = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    changes = [f"{name} was {was.get(name)}, is now {now.get(name)}" for name in names]
    return "; ".join(changes) or "by another version of pyprefopt"


def _describe_key(facts: dict[str, Any]) -> dict[str, Any]:
    """What decides a folder's content, by name, to be shown; contents by the beginning of their hash."""
    tokenizer, settings = dict(facts.get("tokenizer", {})), dict(facts["settings"])
    hashes = {"tokenizer.json": tokenizer.get("json"), "the chat template": tokenizer.get("chat_template")}
    inputs = [
        f"{''.join(Path(file['file'] or 'table').suffixes[-2:])} sha256 {file['sha256'][:12]}".strip()
        for file in facts.get("inputs", [])
    ]
    cut = {f"truncation.{name}": value for name, value in (settings.pop("truncation", None) or {}).items()}
    named = {name: f"sha256 {str(value)[:12]}" for name, value in hashes.items()}
    others = {**tokenizer.get("special_tokens", {}), "the template's date": facts.get("date")}
    return {"the input": ", ".join(inputs), **named, **others, **settings, **cut}


_RECORD: Shape = {  # of one shard, while the folder is made
    **dict.fromkeys(("index", "first_row", "rows_in", "rows", "lines", "tokens"), int),
    **dict.fromkeys(("longest_prompt", "longest_row", "responses_cut", "tokenized_apart"), int),
    "rejected": {...: int},
    "notes": {...: int},
    "special_token": ({"row": int, "field": str, "token": str}, None),
    "rejects_sha256": str,
}
_FACTS: Shape = SegmentStore.written | {  # of the whole folder
    **dict.fromkeys(("key", "kind"), str),
    **dict.fromkeys(("rows_in", "rows", "groups", "tokens", "longest_prompt", "longest_row"), int),
    **dict.fromkeys(("responses_cut", "tokenized_apart", "schema_version"), int),
    "date": (str, None),
    "rejected": {...: int},
    "notes": {...: int},
    "special_token": ({"row": int, "field": str, "token": str}, None),
    "inputs": [{"file": (str, None), "sha256": str}],
    "tokenizer": {
        **dict.fromkeys(("fingerprint", "json", "chat_template"), str),
        "special_tokens": {...: str},
    },
    "settings": {
        **dict.fromkeys(("format", "prompt_overflow", "boundary"), str),
        **dict.fromkeys(("max_prompt_tokens", "max_tokens"), (int, None)),
        "truncation": {...: (str, float, None)},
        "min_response_tokens": int,
        "score_reasoning": bool,
        "offsets": bool,
        "user_weights": [str],
        "columns": [str],
        "mixture": [str],
    },
}


def check_manifest(manifest: dict[str, Any], directory: Path) -> None:
    """ArtifactError where the manifest of a prepared folder is not what was written, or contradicts itself."""
    wrong = misfit(manifest, _FACTS) or misnamed(manifest["shards"])
    if not wrong and manifest["settings"]["format"] not in TABLE:
        wrong = f"settings.format must be a known format, got '{manifest['settings']['format']}'"
    if not wrong and manifest["rows_in"] != manifest["rows"] + sum(manifest["rejected"].values()):
        wrong = "its counts must add up: rows_in is rows and the rejected"
    if not wrong and manifest["lines"] != sum(shard["lines"] for shard in manifest["shards"]):
        wrong = "its counts must add up: lines is that of all shards"
    if wrong:
        raise damaged(directory / MANIFEST, wrong)


def _is_sound(manifest: dict[str, Any], directory: Path) -> bool:
    try:
        check_manifest(manifest, directory)
    except ArtifactError:
        return False
    return True


def _is_shard(name: str) -> bool:
    """A shard, or what a killed writer left of a file."""
    return (name.startswith("segments-") and name.endswith(".arrow")) or (name[0] == "." and name.endswith(".tmp"))
