"""What `data`, `eval_data` and `base.data` name, prepared: files, the embedded set, or a folder that is found ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data import embedded
from pyprefopt.data.mixture import split_weights
from pyprefopt.data.parallel import in_threads
from pyprefopt.data.preparation.workspace import check_manifest
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.store.shards import damaged
from pyprefopt.data.truncation.rule import Truncation, make_truncation
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.splits import prompt_keys, unranked
from pyprefopt.storage.files import HashedFile, content_hash, hash_files, sha256_file, stamp_files
from pyprefopt.storage.folders import MANIFEST, Folder
from pyprefopt.storage.hub import is_bare, resolve

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.files.data_file import DataFile
    from pyprefopt.data.preparation.job import Progress
    from pyprefopt.data.reading.sources import Source
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

CHECKED_ROWS = 1000  # of a source, of which a check reads no more
OFFSETS = ("starts", "ends", "turns")
_REMEDIES = {  # of a folder of this kind where another is needed
    "instructions": "give it as base.data, which SFT learns from",
    "candidates": "give it as data of method rrhf, which trains on candidates",
    "preferences": "give it as data of a method on pairs, such as dpo, or of rrhf",
}

logger = logging.getLogger("pyprefopt")


def kind_of_rows(config: RunConfig) -> str:
    """What `data` and `eval_data` must hold: candidates for a method that trains on them, else preferences."""
    return "candidates" if METHODS[config.method].trains_on == "candidates" else "preferences"


def boundary_of(config: RunConfig) -> str:
    """How a row's text becomes a prompt and responses: a reward model reads it as one, to its last character."""
    return "join" if "reward_head" in METHODS[config.method].needs else "split"


def named_sources(config: RunConfig) -> dict[str, NamedSource]:
    """What the run reads, by setting. The embedded set brings its own test rows and instructions."""
    given = {"data": config.data, "eval_data": config.eval_data, "base.data": config.base.data}
    given |= embedded.COMPANIONS.get(config.data, {}) if isinstance(config.data, str) else {}
    rows = {"data": kind_of_rows(config), "eval_data": kind_of_rows(config), "base.data": "instructions"}
    forms = {"data": config.format, "eval_data": config.format, "base.data": "auto"}
    named = {setting: path for setting, path in given.items() if path is not None and path != "chosen"}
    first = CHECKED_ROWS if config.check else None
    return {
        setting: NamedSource(
            setting,
            path,
            rows[setting],
            forms[setting],
            config.columns,
            config.seed,
            first,
            aspect=None if setting == "base.data" else config.aspect,
        )
        for setting, path in named.items()
    }


def source_of(config: RunConfig, split: str) -> NamedSource:
    """What the rows of a split come from."""
    named = named_sources(config)
    return named["eval_data" if split != "train" and "eval_data" in named else "data"]


@dataclass(frozen=True)
class NamedSource:
    """What one setting names."""

    setting: str
    names: str | Sequence[str]  # a file, folder, glob, prepared folder or embedded set; or a list of files
    kind: str  # what its rows must be: preferences, candidates or instructions
    format: str  # of its rows, or auto
    columns: Sequence[str] = ()  # ours=theirs
    seed: int = 0  # of the rows of a mixture
    first: int | None = None  # rows that a check looks at; None: all
    aspect: str | None = None  # whose ratings are the scores of candidates

    @property
    def path(self) -> str:
        """As messages name it."""
        return self.names if isinstance(self.names, str) else " ".join(self.names)

    @cached_property
    def folder(self) -> Path | None:
        """The folder of segments that it is; None for files, and for the embedded set."""
        if isinstance(self.names, str):
            path = Path(self.names).expanduser()
            return path.resolve() if _is_prepared(path) else None
        ready = next((name for name in split_weights(self.names)[0] if _is_prepared(Path(name).expanduser())), None)
        if ready is not None:
            raise ConfigError(
                f"{self.setting}: the prepared folder '{ready}' cannot stand in a list; name the files that it was "
                "made of, or prepare all files together"
            )
        return None

    @cached_property
    def inputs(self) -> Sequence[HashedFile]:
        """Its files with the hashes of their content; none of a folder, and of the embedded set.

        A check, which keeps nothing, takes their sizes and times for their content.
        """
        names = [file.name for file in self._files]
        return hash_files(names) if self.first is None else stamp_files(names)

    @cached_property
    def _files(self) -> Sequence[DataFile]:
        from pyprefopt.data.files.data_file import find_files

        is_made = self.folder is not None or self.path in embedded.ROWS
        return () if is_made else find_files(split_weights(self.names)[0])[0]

    def content_hash(self) -> str:
        """Hash of its files and of how they are read; of a folder that of the manifest, which has every shard's."""
        if self.folder is not None:
            return sha256_file(self.folder / MANIFEST)
        if self.path in embedded.ROWS:
            return sha256_file(embedded.__file__)
        parts = [[file.kind for file in self._files], [file.sha256 for file in self.inputs]]
        if split_weights(self.names)[1] is not None:
            parts.append(list(self.rows.mixture))
        return content_hash(parts)

    def _columns(self, kind: str) -> dict[str, str]:
        """The columns of other names that such rows can have, and, but for the training data, that are there."""
        from pyprefopt.data.reading.catalog import mapping_of, takes_field
        from pyprefopt.data.reading.detection import columns_of

        mapping = {ours: theirs for ours, theirs in mapping_of(self.columns).items() if takes_field(kind, ours)}
        if not mapping or self.setting == "data" or self.path in embedded.ROWS:
            return mapping
        there = columns_of(self.names)
        return {ours: theirs for ours, theirs in mapping.items() if theirs in there}

    @cached_property
    def rows(self) -> Source:
        """Its rows with their texts: of a folder those of the files that it was made of.

        Raises:
            DataError: they are not of its kind. ConfigError: they are what other methods train on; a folder does not
            lead back to its texts.
        """
        from pyprefopt.data.reading.catalog import kind_of

        if self.folder is not None:
            files, form, columns = self._inputs()
            return _open(files, form, kind_of(form), columns)
        if self.kind != "candidates":
            return self._open_pairs()
        if self.format != "auto":
            return self._open("preferences" if kind_of(self.format) == "preferences" else "candidates")
        try:
            return self._open("candidates")
        except DataError as no_candidates:
            try:
                return self._open("preferences")
            except DataError:
                raise no_candidates from None

    def _open_pairs(self) -> Source:
        """Pairs or instructions; ConfigError for candidates where a method trains on pairs."""
        try:
            return self._open(self.kind)
        except DataError:
            if self.format == "auto" and self.kind == "preferences" and self.holds_candidates():
                raise ConfigError(
                    f"method dpo trains on preferences, and '{self.path}' holds candidates; give it preferences, or "
                    "take method rrhf"
                ) from None
            raise

    def holds_candidates(self) -> bool:
        """Whether its rows are candidates."""
        try:
            _open(self.names, "auto", "candidates", first=1)
        except DataError:
            return False
        return True

    def _open(self, kind: str) -> Source:
        return _open(self.names, self.format, kind, self._columns(kind), self.seed, self.first, self.aspect)

    @property
    def holds_pairs(self) -> bool:
        """Whether it holds pairs where candidates are asked for."""
        return self.kind == "candidates" and self.found == "preferences"

    @cached_property
    def found(self) -> str:
        """What its rows are: of its kind, or preferences where candidates are asked for: each is two candidates."""
        from pyprefopt.data.reading.catalog import kind_of

        return self.rows.kind if self.folder is None else kind_of(self.store.manifest["settings"]["format"])

    def prepared(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        target: Path,
        progress: Callable[[Progress], object],
        inputs: Sequence[HashedFile],
        truncation: Truncation | None = None,
    ) -> SegmentStore:
        """Its segments: a folder's own, or prepared in `target` of the `inputs`, bad rows being left out there.

        Responses are whole, or cut by `truncation`.

        Raises:
            ConfigError: the run asks for something that a ready folder was not made with. ArtifactError: it is damaged.
        """
        if self.folder is not None:
            self._check(config, tokenizer)
            return self.store
        from pyprefopt.data.preparation.block import PrepareConfig
        from pyprefopt.data.preparation.job import prepare_source
        from pyprefopt.data.reading.catalog import weight_fields
        from pyprefopt.data.reading.extra_columns import named_in_any_row
        from pyprefopt.data.reading.sources import log_mixture
        from pyprefopt.data.renaming import as_words
        from pyprefopt.data.tokenization.token_columns import CUT_COUNTS

        weights = named_in_any_row(self.rows, weight_fields(self.found))
        if weights and truncation is None:
            logger.info("%s: the weights of %s multiply the method's", self.path, " and ".join(weights))
        if truncation is None:
            log_mixture(self.rows)
        settings = PrepareConfig(
            format=self.rows.format,
            columns=as_words(self.rows.columns),
            aspect=self.aspect,
            mixture=self.rows.mixture,
            max_prompt_tokens=config.max_prompt_tokens,
            prompt_overflow=config.prompt_overflow,
            max_tokens=config.max_tokens,
            min_response_tokens=config.min_response_tokens if truncation is None else 1,  # of whole responses
            score_reasoning=config.score_reasoning,
            boundary=boundary_of(config),
            truncation=truncation or Truncation(),
            user_weights=(*weights, *named_in_any_row(self.rows, CUT_COUNTS)) if weights else (),
        )
        return prepare_source(self.rows, tokenizer, target, settings, on_error=None, progress=progress, inputs=inputs)

    def prompt_keys(self, store: SegmentStore) -> pl.DataFrame:
        """`row` and `prompt`, a hash, of every row that was read; of a folder's rows by the tokens of their prompts."""
        import polars as pl

        from pyprefopt.data.reading.blocks import parse_block

        if self.folder is not None:
            tables = (pl.DataFrame(table.select(["row", "segment", "ids"])) for table in store.tables())
            return prompt_keys(table.filter(segment=0).rename({"ids": "prompt"}) for table in tables)
        parsed = in_threads(self.rows.blocks(), lambda block: parse_block(block, self.rows.format))
        return prompt_keys(block.frame for block in parsed)

    @cached_property
    def store(self) -> SegmentStore:
        """The segments of a ready folder, mapped into memory."""
        store = SegmentStore.open(self.folder or self.path)
        if "tokenizer" not in store.manifest:
            raise ConfigError(f"{self.setting} must be a folder made by pyprefopt prepare, got '{self.folder}'")
        check_manifest(store.manifest, self.folder or Path(self.path))
        if self.first is None:
            return store
        first = next(store.tables(), None)
        return store if first is None else SegmentStore(first, store.manifest)

    def _check(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        """ConfigError where the run asks for something that the folder was not made with; ArtifactError for damage."""
        from pyprefopt.data.tokenization.coverage import Coverage

        manifest, again = self.store.manifest, "prepare the folder again with it, or pass the raw data"
        settings, found = manifest["settings"], self.found
        if found != self.kind and not self.holds_pairs:
            raise ConfigError(
                f"{self.setting} must hold {self.kind}, got '{self.folder}' of {found}; {_REMEDIES[found]}"
            )
        self._check_tokenizer(config, tokenizer)
        self._check_boundary(boundary_of(config), tokenizer)
        Coverage.of(manifest).check(str(self.folder), tokenizer.path)
        if self.format not in ("auto", settings["format"]):
            self._refuse("format", self.format, f"'{settings['format']}'", again)
        if self.setting == "data" and self.columns and sorted(self.columns) != sorted(settings["columns"]):
            self._refuse("columns", list(self.columns), f"{settings['columns']}", again)
        if self.aspect is not None and settings.get("aspect") != self.aspect:
            self._refuse("aspect", self.aspect, str(settings.get("aspect") or "left out"), again)
        self._check_lengths(config, again)
        overflow = settings["prompt_overflow"]
        fits = {"error": True, "drop": overflow in ("error", "drop")}  # neither cuts, and none is too long here
        if not fits.get(config.prompt_overflow, config.prompt_overflow == overflow):
            self._refuse("prompt_overflow", config.prompt_overflow, f"'{overflow}'", again)
        if settings["score_reasoning"] and not config.score_reasoning:
            self._refuse("score_reasoning", False, "true", again)
        made, asked = make_truncation(settings["truncation"]), config.truncation
        if self.setting == "data" and asked.active and asked.given != made.given:
            self._refuse("truncation", vars(asked), str(made.given or "off"), again)
        if self.setting == "eval_data":
            self.check_as_asked(config)
        if self.first is None:
            SegmentStore.open(self.folder or self.path, verify=True)  # before anything reads the tokens
            self._check_tokens(tokenizer)
        if found == "candidates" and config.on_error == "raise":
            bad = unranked(self.store, "")
            if bad.height:
                first = bad.row(0, named=True)
                more = bad.filter(reason=first["reason"]).height - 1
                raise DataError(
                    f"{self.setting} '{self.folder}', row {first['row']} (and {more} more): {first['rule']}; "
                    f"{first['remedy']}"
                )

    def _check_lengths(self, config: RunConfig, again: str) -> None:
        """ConfigError where prompts, rows or responses of the folder are not as long as the run asks."""
        for name, longest in (("max_prompt_tokens", "longest_prompt"), ("max_tokens", "longest_row")):
            wanted, there = getattr(config, name), self.store.manifest[longest]
            if there > wanted:
                self._refuse(name, wanted, f">= {there}, the longest there", f"raise --{name}, or {again}")
        fewest = self.store.manifest["settings"]["min_response_tokens"]
        if fewest < config.min_response_tokens:
            self._refuse("min_response_tokens", config.min_response_tokens, f"at most {fewest}", again)

    def _check_tokens(self, tokenizer: Tokenizer) -> None:
        """ArtifactError where the folder does not hold what its manifest counts, or ids that no tokenizer gave."""
        store, folder = self.store, Path(str(self.folder))
        for name, found in (("rows", store.num_rows), ("tokens", int(store.lengths.sum()))):
            if (told := store.manifest[name]) != found:
                raise damaged(folder, f"it holds {found:,} {name}, and its manifest says {told:,}")
        if store.largest_id >= tokenizer.vocab_size:
            raise damaged(
                folder, f"token {store.largest_id:,} is in it, and the tokenizer has {tokenizer.vocab_size:,}"
            )

    def _check_boundary(self, wanted: str, tokenizer: Tokenizer) -> None:
        """ConfigError for texts that end otherwise, or are divided otherwise, than the method reads them."""
        made = self.store.manifest["settings"]["boundary"]
        if made == "join" and wanted != "join":
            raise ConfigError(
                f"{self.setting} '{self.folder}' was prepared with boundary join, as reward models read texts; prepare "
                "it again with boundary split, or pass the raw data"
            )
        whole = made == "join" or not (self.store.manifest["tokenized_apart"] or tokenizer.ends_in_space)
        if wanted == "join" and not whole:
            raise ConfigError(
                f"{self.setting} '{self.folder}' was prepared with boundary {made}, which leaves out what the chat "
                "template writes behind the end of a turn, or divides tokens, and a reward model reads texts whole; "
                "prepare it again with boundary join, or pass the raw data"
            )

    def _refuse(self, name: str, value: object, rule: str, remedy: str) -> None:
        raise ConfigError(
            f"{name} must be {rule} for the prepared {self.setting} '{self.folder}', got {value!r}; {remedy}"
        )

    def _check_tokenizer(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        from pyprefopt.data.preparation.job import identity

        ours, theirs = identity(tokenizer), self.store.manifest["tokenizer"]
        wrong = [name for name in ("json", "chat_template") if ours[name] != theirs[name]]
        tokens = ours["special_tokens"]
        wrong += [name for name, text in theirs["special_tokens"].items() if tokens.get(name, text) != text]
        if wrong:
            what = {"json": "tokenizer.json", "chat_template": "chat template"}
            raise ConfigError(
                f"{self.setting} '{self.folder}' was prepared with another {what.get(wrong[0], wrong[0])} than "
                f"{tokenizer.path} has; leave tokenizer, eos_token and chat_template out to take the folder's "
                "own, or prepare it again"
            )
        if config.tokenizer is None and config.model is not None and not is_bare(config.model):
            from pyprefopt.data.tokenization.tokenizer_files import read_tokenizer

            folder = resolve(config.model)
            if (folder / "tokenizer.json").is_file() and read_tokenizer(folder) != tokenizer.json:
                raise ConfigError(
                    f"{self.setting} '{self.folder}' was prepared with another tokenizer.json than model "
                    f"'{config.model}' has; prepare it again with tokenizer {config.model}, or set tokenizer to "
                    f"{(self.folder or Path()) / 'tokenizer'} if the model is to learn the other one"
                )

    def check_as_asked(self, config: RunConfig) -> None:
        """ConfigError for a ready folder of test pairs that are not cut as `eval_truncation` asks."""
        if self.folder is None:
            return
        made, asked = make_truncation(self.store.manifest["settings"]["truncation"]), config.truncation
        if "none" in config.eval_truncation and made.active:
            raise ConfigError(
                f"{self.setting} '{self.folder}' was prepared with truncation, but test pairs must be whole; give "
                "eval_data with pairs that are not truncated, or set eval_ratio to 0, or eval_truncation to same"
            )
        if "same" in config.eval_truncation and made.given != asked.given:
            self._refuse(
                "eval_truncation", list(config.eval_truncation), "none", "pass the raw data, which is cut here"
            )

    def _inputs(self) -> tuple[list[str], str, list[str]]:
        """The files that a ready folder was made of, their format, and which columns are meant.

        Raises:
            ConfigError: they are not there as they were; or the folder has no offsets.
        """
        needed = (
            f"{self.setting} '{self.folder}' holds tokens, and a column or a model of another tokenizer needs the texts"
        )
        if not set(OFFSETS) <= set(self.store.table.column_names):
            raise ConfigError(f"{needed} and the tokens' places in them; prepare it again with offsets")
        if self.store.manifest["settings"]["mixture"]:
            raise ConfigError(f"{needed}, which a mixture does not lead back to; pass the raw data with its weights")
        files: list[dict[str, Any]] = self.store.manifest["inputs"]
        for entry in files:
            file = entry["file"]
            if file is None or not Path(file).is_file() or sha256_file(file) != entry["sha256"]:
                raise ConfigError(
                    f"{needed}, but {file or 'the table that it was made of'} is not there as it was; pass the raw data"
                )
        settings = self.store.manifest["settings"]
        return [entry["file"] for entry in files], settings["format"], settings["columns"]


def _is_prepared(path: Path) -> bool:
    return (Folder(path).find_manifest() or {}).get("kind") == SegmentStore.kind


def _open(
    names: str | Sequence[str],
    format: str,  # noqa: A002
    kind: str,
    columns: Mapping[str, str] | Sequence[str] = (),
    seed: int = 0,
    first: int | None = None,
    aspect: str | None = None,
) -> Source:
    from pyprefopt.data.reading.candidate_sets import open_candidates
    from pyprefopt.data.reading.sources import open_source

    if kind == "candidates":
        return open_candidates(names, format=format, columns=columns, aspect=aspect, seed=seed, first=first)
    source = open_source(names, format=format, kind=kind, columns=columns, aspect=aspect, seed=seed)
    return source if first is None else source.head(first)


def texts_of(config: RunConfig, split: str, policy: SegmentStore, columns: Sequence[str] = ()) -> pl.DataFrame:
    """The rows of a split as they were read, with their texts whole and their further columns of these names."""
    import polars as pl

    from pyprefopt.data.reading.frames import scan_source

    rows = scan_source(source_of(config, split).rows, columns).frame
    return rows.filter(pl.col("row").is_in(pl.Series(policy.rows).implode())).sort("row")


def cuts_texts(config: RunConfig, split: str) -> bool:
    """Whether the responses of a split were cut as texts: in a ready folder, or as the run says."""
    source = source_of(config, split)
    if source.folder is not None:
        return make_truncation(source.store.manifest["settings"]["truncation"]).of_texts
    whole = split == "eval" and "none" in config.eval_truncation
    return config.truncation.of_texts and not whole


def scores_reasoning(config: RunConfig, split: str) -> bool:
    """Whether reasoning is scored in a split: as a ready folder was made, else as the run says."""
    source = source_of(config, split)
    settings = source.store.manifest["settings"] if source.folder is not None else vars(config)
    return bool(settings["score_reasoning"])
