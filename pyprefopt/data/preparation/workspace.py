"""The folder of a preparation while it is made: which shards are there, for which key, and what is still missing.

Everything unfinished lies in `.work`: the key, and a record of each shard, written after the shard. A killed run
leaves the folder without a manifest; the next one of the same key checks the recorded shards and makes the rest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.store.shards import Shard, are_shards, check_shards, shard_name, shards_manifest, write_shard
from pyprefopt.errors import ArtifactError, option
from pyprefopt.storage import files
from pyprefopt.storage.locks import LOCK

if TYPE_CHECKING:
    from pyprefopt.data.preparation.block import PreparedBlock

WORK, REJECTED, TOKENIZER = ".work", "rejected.jsonl", "tokenizer"
_OURS = (LOCK, WORK, REJECTED, TOKENIZER, files.MANIFEST)

logger = logging.getLogger("pyprefopt")


class Workspace:
    """A folder that is being prepared. The caller holds its lock."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.work = directory, directory / WORK
        self.records: dict[int, dict[str, Any]] = {}  # shards that are there, by index

    def check_ours(self) -> None:
        """ArtifactError where the folder holds files that no preparation made."""
        names = sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []
        begun = WORK in names or files.MANIFEST in names  # there from the first file to the last
        ours = (lambda name: name in _OURS or _is_shard(name)) if begun else (lambda name: name == LOCK)
        foreign = [name for name in names if not ours(name)]
        if foreign:
            raise ArtifactError(
                f"{self.directory} holds other files ({', '.join(foreign[:3])}); choose a new or empty folder"
            )

    def finished(self) -> dict[str, Any] | None:
        """The manifest, if the folder is finished; an empty one where it is damaged."""
        if not (self.directory / files.MANIFEST).exists():
            return None
        try:
            manifest = files.read_manifest(self.directory)
        except ArtifactError:
            return {}
        return manifest if _is_sound(manifest) else {}

    def check_shards(self, manifest: dict[str, Any]) -> None:
        """ArtifactError where a shard is missing, or its bytes are not those that were written."""
        check_shards(self.directory, manifest["shards"], f"prepare again with {option('overwrite', True)}")

    def claim(self, key: str, made_from: dict[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder ready for `key`: keep the shards that are its own, clear away everything else.

        made_from: what the key is of, as manifests say it.

        ArtifactError where a finished folder of another key, or a damaged one, is there, unless `overwrite`.
        """
        manifest = self.finished()
        if manifest == {} and not overwrite:
            raise ArtifactError(
                f"{self.directory / files.MANIFEST} is damaged: it is not what prepare wrote; make the folder again: "
                f"{option('overwrite', True)}, or choose another folder"
            )
        if manifest is not None and not overwrite:
            raise ArtifactError(
                f"{self.directory} was made otherwise: {_differences(manifest, made_from)}; choose another folder, or "
                f"replace it: {option('overwrite', True)}"
            )
        if manifest is not None or self._claimed_by() != key:
            if manifest is not None or self._claimed_by() is not None:
                logger.info("%s: input, tokenizer or settings changed, made again", self.directory)
            self.clear()
            files.write_json(self.work / "key.json", {"key": key})
        self.records = {record["index"]: record for record in self._recorded()}

    def clear(self) -> None:
        """Remove everything that a preparation makes: the manifest first, what marks the folder as ours last."""
        self.work.mkdir(exist_ok=True)
        (self.directory / files.MANIFEST).unlink(missing_ok=True)
        for path in self.directory.iterdir():
            if path.name == REJECTED or _is_shard(path.name):
                path.unlink()
        shutil.rmtree(self.directory / TOKENIZER, ignore_errors=True)
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
            record["shard"] = write_shard(self.directory, name, block.shard, lines=block.lines)
        if block.rejects:
            files.atomic_write(self._rejects(block.index), block.rejects)
        files.write_json(self.work / f"{block.index:05d}.json", record)
        self.records[block.index] = record

    def shards(self) -> list[Shard]:
        """The shards that have lines, as the manifest names them."""
        records = [self.records[index] for index in sorted(self.records)]
        return [record["shard"] | {"first_row": record["first_row"]} for record in records if record["lines"]]

    def rejected(self) -> Iterator[Path]:
        """The files of rejected rows, in the order of the input."""
        return (self._rejects(index) for index in sorted(self.records) if self.records[index]["rejected"])

    def finish(self, facts: dict[str, Any]) -> None:
        """Write `rejected.jsonl`, then the manifest; then nothing else is needed."""
        if any(record["rejected"] for record in self.records.values()):
            files.atomic_write(self.directory / REJECTED, self._copy_rejected)
        known = {shard["file"] for shard in self.shards()}
        for path in self.directory.glob("segments-*.arrow"):
            if path.name not in known:
                path.unlink()
        files.write_manifest(self.directory, facts | shards_manifest("segments", self.shards()))
        self.tidy()

    def tidy(self) -> None:
        """Clear away what a finished folder does not need."""
        shutil.rmtree(self.work, ignore_errors=True)
        files.remove_leftovers(self.directory)
        files.remove_leftovers(self.directory / TOKENIZER)

    def _copy_rejected(self, target: Any) -> None:
        for path in self.rejected():
            with path.open("rb") as source:
                shutil.copyfileobj(source, target)

    def _claimed_by(self) -> str | None:
        try:
            return str(json.loads((self.work / "key.json").read_bytes())["key"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _recorded(self) -> Iterator[dict[str, Any]]:
        """Records whose shard and rejected rows are there, bit by bit."""
        files.remove_leftovers(self.directory)
        files.remove_leftovers(self.work)
        for path in sorted(self.work.glob("[0-9]*.json")):
            record = json.loads(path.read_bytes())
            shard = self.directory / shard_name("segments", record["index"])
            rejects = self._rejects(record["index"])
            if (not record["lines"] or _holds(shard, record["shard"]["sha256"])) and (
                not record["rejected"] or _holds(rejects, record["rejects_sha256"])
            ):
                yield record

    def _rejects(self, index: int) -> Path:
        return self.work / f"{index:05d}.rejected"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`max_tokens was 1500, is now 2048`: in what the manifest `old` differs from what would be made now."""
    was, now = _told(old), _told(json.loads(json.dumps(new)))  # tuples become lists, as in the manifest
    names = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    told = [f"{name} was {was.get(name)}, is now {now.get(name)}" for name in names]
    return "; ".join(told) or "by another version of pyprefopt"


def _told(facts: dict[str, Any]) -> dict[str, Any]:
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


def _is_sound(manifest: dict[str, Any]) -> bool:
    """Whether what is read of a manifest has the types that it was written with."""
    kinds = {"key": str, "rows_in": int, "rows": int, "shards": list, "rejected": dict, "settings": dict}
    return all(isinstance(manifest.get(name), kind) for name, kind in kinds.items()) and are_shards(manifest["shards"])


def _is_shard(name: str) -> bool:
    """A shard, or what a killed writer left of a file."""
    return (name.startswith("segments-") and name.endswith(".arrow")) or (name[0] == "." and name.endswith(".tmp"))


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and files.sha256_file(path) == sha256


def digest(value: object) -> str:
    """sha256 of a JSON-like value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
