"""From preference data to a folder of token segments: streaming, sharded, resumable, the same bytes every time."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pyprefopt.data.arrow import first_line
from pyprefopt.data.files.tables import as_tables
from pyprefopt.data.preparation.block import PrepareConfig, PreparedBlock, check_config
from pyprefopt.data.preparation.runners import runner
from pyprefopt.data.preparation.workspace import REJECTED, TOKENIZER, Workspace, logger
from pyprefopt.data.reading.catalog import weight_fields
from pyprefopt.data.reading.rejects import DROPPED, log_dropped
from pyprefopt.data.reading.sources import Source, log_mixture, open_source
from pyprefopt.data.renaming import as_words
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.store.shards import SCHEMA_VERSION
from pyprefopt.data.tokenization.coverage import Coverage
from pyprefopt.data.tokenization.notes import SpecialToken, add_notes, log_notes
from pyprefopt.data.tokenization.token_columns import CUT_COUNTS
from pyprefopt.data.tokenization.tokenizer import GivenTokenizer, as_tokenizer
from pyprefopt.data.truncation.rule import make_truncation
from pyprefopt.errors import ArtifactError, DataError, check, counted, option
from pyprefopt.storage.files import HashedFile, content_hash, explain_writing, hash_files
from pyprefopt.storage.locks import FolderLock
from pyprefopt.version import __version__

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Progress:
    """How far a preparation is."""

    rows: int = 0  # read so far, good and bad
    rejected: int = 0  # of them
    tokens: int = 0  # written
    shards: int = 0  # written or found
    found: int = 0  # shards of a run before, used again
    bytes_read: int = 0  # of the input files, as they are on disk
    bytes_total: int = 0  # of the input files; 0 for a table


def prepare(
    source: Any,
    tokenizer: GivenTokenizer,
    out: str | Path,
    *,
    format: str = "auto",  # noqa: A002
    columns: Mapping[str, str] | Sequence[str] | None = None,
    aspect: str | None = None,
    max_prompt_tokens: int | None = 1024,
    prompt_overflow: str = "error",
    max_tokens: int | None = 2048,
    min_response_tokens: int = 1,
    boundary: str = "split",
    score_reasoning: bool = True,
    truncation: Mapping[str, Any] | None = None,
    offsets: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    seed: int = 0,
    engine: str = "local",
    overwrite: bool = False,
    progress: Callable[[Progress], object] | None = None,
    command: str | None = None,
) -> SegmentStore:
    """Write the segments of a preference set into the folder `out`, and open it.

    The bytes depend on the input's content, the tokenizer and the settings alone. A killed run goes on where it was;
    a folder that is finished for the same input, tokenizer and settings is opened at once.

    Args:
        source: what `open_source` takes.
        tokenizer: as in `tokenize`, with the chat template; both are kept in `out/tokenizer`.
        out: a new or empty folder, or one that this function made.
        format: as in `open_source`.
        columns: as in `open_source`.
        aspect: as in `open_source`.
        max_prompt_tokens: as in `tokenize`.
        prompt_overflow: as in `tokenize`.
        max_tokens: as in `tokenize`.
        min_response_tokens: rows with a response of fewer tokens are left out and counted, whatever `on_error` says.
        boundary: as in `tokenize`.
        score_reasoning: as in `tokenize`.
        truncation: settings of `truncate` (ratio or length, unit, rounding, ratio_base, cut_end); every row is cut.
        offsets: keep `starts`, `ends` and `turns` of every token, which `transfer_values` and cuts by text need.
        on_error: raise: read everything, then report all bad rows; skip: drop them, recorded in `out/rejected.jsonl`.
        seed: which rows of a mixture are drawn, as in `open_source`.
        engine: local or ray (the extra `ray`); the same bytes.
        overwrite: replace a folder that was prepared from something else.
        progress: called after each shard.
        command: the user's command, shown with `--on_error skip` where rows are bad.

    Returns:
        The store of the folder.

    Raises:
        ConfigError: settings that break a rule.
        DataError: bad rows (on_error raise), an unreadable input, or no row left.
        ArtifactError: `out` is being written, was prepared from something else, or cannot be written; an input
            changed while it was read.

    Example:
        >>> store = prepare("pairs/*.jsonl.zst", load_tokenizer("model"), "prepared", max_tokens=4096)
    """
    check(on_error in ("raise", "skip"), "on_error", on_error, "'raise' or 'skip'")
    tokenizer = as_tokenizer(tokenizer)
    opened = open_source(_rereadable(source), format=format, columns=columns, aspect=aspect, seed=seed)
    log_mixture(opened)
    weights = opened.named(weight_fields(opened.kind))
    config = PrepareConfig(
        format=opened.format,
        columns=as_words(opened.columns),
        aspect=aspect,
        mixture=opened.mixture,
        max_prompt_tokens=max_prompt_tokens,
        prompt_overflow=prompt_overflow,
        max_tokens=max_tokens,
        min_response_tokens=min_response_tokens,
        boundary=boundary,
        score_reasoning=score_reasoning,
        truncation=make_truncation(truncation or {}),
        offsets=offsets,
        user_weights=(*weights, *opened.named(CUT_COUNTS)) if weights else (),
    )
    return prepare_source(
        opened, tokenizer, out, config,
        on_error=on_error, engine=engine, overwrite=overwrite, progress=progress, command=command,
    )  # fmt: skip


def prepare_source(
    source: Source,
    tokenizer: Tokenizer,
    out: str | Path,
    config: PrepareConfig,
    *,
    on_error: Literal["raise", "skip"] | None,
    engine: str = "local",
    overwrite: bool = False,
    progress: Callable[[Progress], object] | None = None,
    command: str | None = None,
    inputs: Sequence[HashedFile] | None = None,
) -> SegmentStore:
    """`prepare` of an open source; on_error None: for a caller that has the tokenizer, and reports the bad rows itself.

    The folder then has no tokenizer, and is finished whatever rows it has. `inputs` are the source's files where the
    caller has hashed them.
    """
    check_config(config, tokenizer)
    run, directory = runner(engine), Path(out).expanduser()
    try:
        workspace = Workspace(directory)
        workspace.check_ours()
        with FolderLock(directory):
            hashed = hash_files(file.name for file in source.data_files) if inputs is None else inputs
            job = _Job(source, config, tokenizer, workspace, progress, hashed)
            if job.is_done(overwrite=overwrite):
                job.check_finished(on_error, command)
            else:
                job.take(overwrite=overwrite)
                job.work(run)
                job.finish(on_error, command)
            return SegmentStore.open(directory)
    except OSError as error:
        raise ArtifactError(explain_writing(error, error.filename or directory)) from error


@dataclass
class _Job:
    """One preparation: what is made, from what, and where."""

    source: Source
    config: PrepareConfig
    tokenizer: Tokenizer
    workspace: Workspace
    progress: Callable[[Progress], object] | None
    files: Sequence[HashedFile]  # none for a table
    found: int = 0  # shards of a run before

    @cached_property
    def inputs(self) -> list[str]:
        """The hash of each input file, or of the table."""
        return [file.sha256 for file in self.files] or [_content(self.source)]

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides the folder's content."""
        kinds = [file.kind for file in self.source.data_files]
        parts = [self.config.written, self.tokenizer.fingerprint, kinds, self.inputs, self.date]
        return content_hash([SCHEMA_VERSION, __version__, *parts])

    @property
    def made_from(self) -> dict[str, Any]:
        """What decides the folder's content, as the manifest has it."""
        files = [{"file": file.name, "bytes": file.stamp[0], "sha256": file.sha256} for file in self.files]
        return {
            "settings": self.config.written,
            "tokenizer": identity(self.tokenizer),
            "date": self.date,
            "inputs": files or [{"file": None, "sha256": self.inputs[0]}],
        }

    @cached_property
    def date(self) -> str | None:
        """Today, where the template writes it into the chats; else None."""
        templates = (self.tokenizer.chat_template, *self.tokenizer.other_templates.values())
        return time.strftime("%Y-%m-%d") if any("strftime_now" in template for template in templates) else None

    def is_done(self, *, overwrite: bool) -> bool:
        """Whether the folder is finished for this very key, with all its shards; a damaged one may be made again."""
        manifest = self.workspace.finished()
        if manifest is None or manifest.get("key") != self.key:
            return False
        try:
            self.workspace.check_shards(manifest)
        except ArtifactError:
            if overwrite:
                return False
            raise
        self.workspace.tidy()
        logger.info("%s: done before, used again", self.workspace.path)
        return True

    def check_finished(self, on_error: str | None, command: str | None) -> None:
        """Report the bad rows that a finished folder left out, where they are to be raised."""
        manifest = self.workspace.finished()
        if manifest and _has_bad(manifest["rejected"]) and on_error == "raise":
            _raise([self.workspace.path / REJECTED], manifest["rows_in"], command)

    def take(self, *, overwrite: bool) -> None:
        """Take the folder; shards of a killed run of this key stay."""
        self.workspace.take(self.key, self.made_from, overwrite=overwrite)
        self.found = len(self.workspace.records)
        if self.found:
            logger.info("%s: going on, found %s", self.workspace.path, counted(self.found, "shard"))

    def work(self, run: Callable[..., Iterator[PreparedBlock]]) -> None:
        """Make the missing shards; one thread writes while the engine works."""
        self._report_progress()
        with ThreadPoolExecutor(1, "write") as writer:
            writing: Future[None] | None = None
            for block in run(self._missing(), self.config, self.tokenizer):
                if writing is not None:
                    writing.result()
                    self._report_progress()
                writing = writer.submit(self._commit, block)
            if writing is not None:
                writing.result()
        self._report_progress()
        self._check_unchanged()

    def finish(self, on_error: str | None, command: str | None) -> None:
        """Report bad rows, or finish the folder."""
        records = list(self.workspace.records.values())
        rejected: Counter[str] = Counter()
        for record in records:
            rejected.update(record["rejected"])
        rows_in = sum(record["rows_in"] for record in records)
        rows = sum(record["rows"] for record in records)
        if rows_in != rows + rejected.total():
            raise RuntimeError(f"rows went missing: {rows_in} in, {rows} used, {rejected.total()} rejected")
        coverage = Coverage.total(Coverage.of(record) for record in records)
        coverage.check(self.files[0].name if self.files else "the rows", self.tokenizer.path)
        if _has_bad(rejected) and on_error == "raise":
            _raise(self.workspace.rejected(), rows_in, command)
        if not rows and on_error is not None:
            self.workspace.abandon()
            reasons = ", ".join(f"{name}: {count:,}" for name, count in rejected.items())
            remedy = "" if on_error == "raise" else "; --on_error raise (in Python on_error='raise') shows them"
            raise DataError(f"no row is left; {reasons}{remedy}")
        if on_error is not None:
            self.tokenizer.save(self.workspace.path / TOKENIZER)
        totals = {
            name: sum(record[name] for record in records) for name in ("tokens", "responses_cut", "tokenized_apart")
        }
        longest = {
            name: max((record[name] for record in records), default=0) for name in ("longest_prompt", "longest_row")
        }
        special = SpecialToken.first_of(SpecialToken.of(record) for record in records)
        facts = {
            "key": self.key,
            **self.made_from,
            "rows_in": rows_in,
            "rows": rows,
            "groups": rows,
            "rejected": dict(sorted(rejected.items())),
            "notes": add_notes(record["notes"] for record in records),
            "special_token": special and special._asdict(),
        }
        if on_error is not None:
            log_dropped(rejected, rows_in)
            log_notes(facts["notes"], special, score_reasoning=self.config.score_reasoning)
        self.workspace.finish(facts | totals | longest | coverage._asdict())

    def _missing(self) -> Iterator[Any]:
        for block in self.source.blocks(extra=self.config.user_weights):
            if block.index not in self.workspace.records:
                yield block

    def _commit(self, block: PreparedBlock) -> None:
        self._check_unchanged()
        self.workspace.commit(block)

    def _report_progress(self) -> None:
        if self.progress is None:
            return
        records = list(self.workspace.records.values())
        totals = (sum(record[name] for record in records) for name in ("rows_in", "rows", "tokens"))
        meter, (rows_in, rows, tokens) = self.source.meter, totals
        self.progress(Progress(rows_in, rows_in - rows, tokens, len(records), self.found, meter.read, meter.total))

    def _check_unchanged(self) -> None:
        """ArtifactError where an input file is not the one that was hashed; nothing made from it stays."""
        for file in self.files:
            if not file.is_unchanged:
                self.workspace.clear()
                raise ArtifactError(f"{file.name} changed while it was read; prepare again when nothing writes to it")


def _has_bad(rejected: Mapping[str, int]) -> bool:
    """Whether rows were left out that no setting asks to leave out."""
    return any(reason not in DROPPED for reason in rejected)


def _raise(rejected: Iterable[Path], rows_in: int, command: str | None) -> None:
    """DataError with the bad rows of these files."""
    import polars as pl

    from pyprefopt.data.reading.rejects import REJECTS, raise_for

    try:
        frames = [pl.read_ndjson(path, schema=REJECTS) for path in rejected]
    except pl.exceptions.PolarsError as error:
        remedy = f"prepare again with {option('overwrite', True)}"
        raise ArtifactError(f"the record of bad rows is damaged: {first_line(error)}; {remedy}") from None
    raise_for(pl.concat(frames), rows_in, command=command, recorded=REJECTED)


def identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a manifest holds of a tokenizer: hashes of its parts, and the special tokens by name."""
    return {
        "fingerprint": tokenizer.fingerprint,
        "json": hashlib.sha256(tokenizer.json).hexdigest(),
        "chat_template": tokenizer.template_hash,
        "special_tokens": dict(sorted(tokenizer.special_tokens.items())),
    }


def _rereadable(source: Any) -> Any:
    """The source; what can be read only once (a reader, a DuckDB relation) as a table."""
    if isinstance(source, str | Path | list | tuple) or hasattr(source, "with_format"):
        return source
    tables = as_tables(source)
    batches = [
        batch for part in tables.batches() for batch in (part.to_batches() if isinstance(part, pa.Table) else [part])
    ]
    return pa.Table.from_batches(batches, tables.schema)


def _content(source: Any) -> str:
    """Hash of an input that is no file."""
    whole = hashlib.sha256()
    for block in source.blocks():
        rows = block.rows.combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        whole.update(sink.getvalue())
    return whole.hexdigest()
