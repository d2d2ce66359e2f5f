"""Folders of `pyprefopt prepare` as a run's data: used as they are, so what they cannot honour is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import RunConfig, TruncationConfig
from pyprefopt.stages.candidates import check_ranked
from pyprefopt.storage.files import MANIFEST, read_manifest, sha256_file
from pyprefopt.storage.hub import resolve

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.tokenization.tokenizer import Tokenizer


def is_prepared(path: str | None) -> bool:
    """Whether `path` is a finished folder of segments."""
    if path is None or not (Path(path).expanduser() / MANIFEST).is_file():
        return False
    return read_manifest(Path(path).expanduser()).get("kind") == SegmentStore.kind


_REMEDIES = {  # of a folder of this kind where another is needed
    "instructions": "give it as base.data, which SFT learns from",
    "candidates": "give it as data of method rrhf, which trains on candidates",
    "preferences": "give it as data of a method on pairs, such as dpo",
}


class Prepared:
    """One prepared folder, given as `setting` (data, eval_data or base.data)."""

    def __init__(self, setting: str, path: str) -> None:
        self.setting, self.directory = setting, Path(path).expanduser().resolve()

    @cached_property
    def store(self) -> SegmentStore:
        """Its segments, mapped into memory."""
        return SegmentStore.open(self.directory)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What it was made of and with."""
        manifest = self.store.manifest
        if "tokenizer" not in manifest:
            raise ConfigError(f"{self.setting} must be a folder made by pyprefopt prepare, got '{self.directory}'")
        return manifest

    def content_hash(self) -> str:
        """Hash of the manifest, which names the hash of every shard and of the tokenizer."""
        return sha256_file(self.directory / MANIFEST)

    def check(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        """ConfigError where the run asks for something that the folder was not made with; ArtifactError for damage."""
        from pyprefopt.data.reading.catalog import kind_of

        settings, again = self.manifest["settings"], "prepare the folder again with it, or pass the raw data"
        candidates = METHODS[config.method].trains_on == "candidates"
        kind = "instructions" if self.setting == "base.data" else "candidates" if candidates else "preferences"
        found = kind_of(settings["format"])
        if found != kind:
            raise ConfigError(f"{self.setting} must hold {kind}, got '{self.directory}' of {found}; {_REMEDIES[found]}")
        self._check_tokenizer(tokenizer)
        if kind != "instructions" and config.format not in ("auto", settings["format"]):
            self._refuse("format", config.format, f"'{settings['format']}'", again)
        for name, longest in (("max_prompt_tokens", "longest_prompt"), ("max_tokens", "longest_row")):
            wanted, found = getattr(config, name), self.manifest[longest]
            if found > wanted:
                self._refuse(name, wanted, f">= {found}, the longest there", f"raise --{name}, or {again}")
        overflow = settings["prompt_overflow"]
        if config.prompt_overflow not in ("drop", overflow):
            self._refuse("prompt_overflow", config.prompt_overflow, f"'{overflow}'", again)
        made = {"tokens" if name == "length" else name: value for name, value in settings["truncation"].items()}
        asked = config.truncation
        if self.setting == "data" and asked.active and vars(asked) != vars(TruncationConfig()) | made:
            self._refuse("truncation", vars(asked), str(made or "off"), again)
        SegmentStore.open(self.directory, verify=True)  # before anything reads the tokens
        if kind == "candidates":
            check_ranked(self.store, f"{self.setting} '{self.directory}'")

    def _refuse(self, name: str, value: object, rule: str, remedy: str) -> None:
        raise ConfigError(
            f"{name} must be {rule} for the prepared {self.setting} '{self.directory}', got {value!r}; {remedy}"
        )

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        from pyprefopt.data.preparation.job import identity

        ours, theirs = identity(tokenizer), self.manifest["tokenizer"]
        wrong = [name for name in ("json", "chat_template") if ours[name] != theirs[name]]
        tokens = ours["special_tokens"]
        wrong += [name for name, text in theirs["special_tokens"].items() if tokens.get(name, text) != text]
        if wrong:
            what = {"json": "tokenizer.json", "chat_template": "chat template"}
            raise ConfigError(
                f"{self.setting} '{self.directory}' was prepared with another {what.get(wrong[0], wrong[0])} than "
                f"{tokenizer.path} has; leave tokenizer, eos_token and chat_template out to take the folder's "
                "own, or prepare it again"
            )

    def tokenizer(self, config: RunConfig) -> Tokenizer:
        """The folder's own tokenizer; a model that brings one must bring the same vocabulary."""
        from pyprefopt.data.tokenization.tokenizer import load_tokenizer

        own = load_tokenizer(self.directory / "tokenizer")
        if config.model is not None and not config.model.endswith(".json"):
            file = resolve(config.model) / "tokenizer.json"
            if file.is_file() and file.read_bytes() != own.json:
                raise ConfigError(
                    f"{self.setting} '{self.directory}' was prepared with another tokenizer.json than model "
                    f"'{config.model}' has; prepare it again with tokenizer {config.model}, or set tokenizer to "
                    f"{self.directory / 'tokenizer'} if the model is to learn the other one"
                )
        return own

    def part(self) -> Part:
        """All rows; test pairs must be whole."""
        part = Part(self, np.ones(self.store.num_rows, np.bool_))
        if self.setting == "eval_data":
            part.check_whole()
        return part


@dataclass(frozen=True)
class Part:
    """Rows of a prepared folder."""

    folder: Prepared
    keep: NDArray[np.bool_]  # [groups]

    def is_empty(self) -> bool:
        """Whether no row is kept."""
        return not self.keep.any()

    def frame(self) -> pl.DataFrame:
        """The kept rows' segments."""
        import polars as pl

        store = self.folder.store
        kept = np.repeat(self.keep, np.diff(store.group_offsets))
        return pl.DataFrame(store.table.filter(pa.array(kept)))

    def first(self, count: int) -> Part:
        """The first `count` kept rows."""
        return replace(self, keep=self.keep & (np.cumsum(self.keep) <= count))

    def hold_out(self, split: Callable[[pl.DataFrame], tuple[pl.DataFrame, pl.DataFrame]]) -> dict[str, Part]:
        """`train` and `eval`, as `split` divides a frame of `row` and `prompt` (here its ids)."""
        import polars as pl

        store = self.folder.store
        table = store.table.select(["row", "ids"]).filter(pa.array(store.segments == 0))
        frames = split(pl.DataFrame(table.rename_columns(["row", "prompt"])))
        train, held_out = (replace(self, keep=np.isin(store.rows, frame["row"].to_numpy())) for frame in frames)
        if not held_out.is_empty():
            held_out.check_whole()
        return {"train": train, "eval": held_out}

    def check_whole(self) -> None:
        """ConfigError where responses were truncated: test pairs must be whole."""
        if self.folder.manifest["settings"]["truncation"]:
            raise ConfigError(
                f"{self.folder.setting} '{self.folder.directory}' was prepared with truncation, but test pairs must be "
                "whole; give eval_data with pairs that are not truncated, or set eval_ratio to 0"
            )

    def write(self, target: Path) -> SegmentStore:
        """The rows as a store at `target`: a link to the folder if they are all of them, else a copy."""
        if target.is_symlink():
            target.unlink()
        if not self.keep.all():
            return self.folder.store.write_part(target, self.keep)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(self.folder.directory, target_is_directory=True)
        return SegmentStore.open(target)
