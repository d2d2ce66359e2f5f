"""Stage `data`: sources are prepared, and become the stores of the splits. All is checked before anything is used."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.data.tokenization.notes import SpecialToken, log_notes
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.errors import ConfigError, DataError, agreeing, counted
from pyprefopt.log import Bar
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.sources import NamedSource, boundary_of, kind_of_rows, named_sources
from pyprefopt.stages.splits import (
    Part,
    as_candidates,
    best_responses,
    cut_responses,
    unranked,
    weights_of,
    write_planted,
    write_split,
)
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write, content_hash
from pyprefopt.storage.hub import EMBEDDED_DATA, EMBEDDED_MODEL, is_bare, is_embedded
from pyprefopt.types import unkeyed
from pyprefopt.version import __version__

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.preparation.job import Progress
    from pyprefopt.data.tokenization.segments import Tokenizer
    from pyprefopt.storage.files import HashedFile

REJECTED = "rejected.jsonl"  # rows that were left out, and why: in the artifact, and from there in output_dir
TEST_SPLITS = ("eval", "eval_cut")  # test rows as `eval_truncation` asks; the second where it asks for both
PREPARED = "prepared"  # folder of the sources' segments while the splits are made of them

logger = logging.getLogger("pyprefopt")


def open_tokenizer(config: RunConfig) -> Tokenizer:
    """The run's tokenizer: `--tokenizer`, that of the prepared folder `data`, or the model's own."""
    from pyprefopt.data.tokenization.segments import load_tokenizer

    return load_tokenizer(
        tokenizer_source(config),
        eos_token=config.eos_token,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
    )


def tokenizer_source(config: RunConfig) -> str:
    """Where the run's tokenizer is. ConfigError where nothing brings one."""
    folder = named_sources(config)["data"].folder
    if folder is not None and (config.tokenizer, config.eos_token, config.chat_template) == (None, None, None):
        return str(folder / "tokenizer")
    embedded = is_embedded(config.model, config.data)
    source = config.tokenizer or (EMBEDDED_DATA if embedded else config.model)
    if source is None or (config.tokenizer is None and is_bare(source)):
        what = "a config.json brings" if source != EMBEDDED_MODEL else f"{source} alone brings"
        raise ConfigError(f"{what} no tokenizer; set tokenizer to a folder or a tokenizer.json")
    return source


def wants_best(config: RunConfig) -> bool:
    """Whether a base is to be trained on candidates, which have no chosen responses: it learns the best ones."""
    trained = config.policy_init == "base" and config.base.path is None and "base.data" not in named_sources(config)
    return trained and kind_of_rows(config) == "candidates"


def open_splits(data: Artifact) -> Iterator[tuple[str, SegmentStore]]:
    """The splits that hold pairs or candidates, `train` and those of test rows, by name."""
    for name in ("train", *TEST_SPLITS):
        if (data.directory / name).exists():
            yield name, SegmentStore.open(data.directory / name)


@dataclass
class _Sources:
    """The run's sources, prepared, with the counts of their rows: rows in = rows used + rows rejected."""

    config: RunConfig
    tokenizer: Tokenizer
    directory: Path
    inputs: Mapping[str, Sequence[HashedFile]]  # setting -> the files that were hashed for the key
    first: int | None  # rows of a split that a check takes
    named: dict[str, NamedSource] = field(init=False)
    stores: dict[str, SegmentStore] = field(default_factory=dict)  # setting -> its segments
    cut_texts: dict[str, SegmentStore] = field(default_factory=dict)  # setting -> segments of texts that were cut
    rejects: list[pl.DataFrame] = field(default_factory=list)  # of rows that were prepared and then left out
    identical: dict[str, int] = field(default_factory=dict)  # split that was cut -> pairs that are the same by it

    def __post_init__(self) -> None:
        self.named = named_sources(self.config)

    def prepare(self) -> None:
        """Make, or find, the segments of every source."""
        done = 0
        with Bar("data", unit="row", shown=self.config.progress_bar) as bar:
            for setting, source in self.named.items():

                def show(progress: Progress, before: int = done, name: str = Path(source.path).name) -> None:
                    bar.advance(before + progress.rows - bar.done, preparing=name)

                where, inputs = self.directory / PREPARED, self.inputs[setting]
                store = source.prepared(self.config, self.tokenizer, where / setting, show, inputs)
                self.stores[setting] = store
                done += store.manifest["rows_in"]
                if self._cuts_texts(setting):
                    rule = self.config.truncation
                    cut = source.prepared(self.config, self.tokenizer, where / f"{setting}_cut", show, inputs, rule)
                    self.cut_texts[setting] = cut
                limits, count = store.manifest["settings"], store.manifest["responses_cut"]
                if count:  # the limit of a ready folder may be another
                    facts = (source.path, counted(count, "response"), limits["max_tokens"])
                    logger.warning("%s: %s cut to fit max_tokens = %d", *facts)
                notes, special = store.manifest["notes"], SpecialToken.of(store.manifest)
                log_notes(notes, special, score_reasoning=limits["score_reasoning"], source=source.path)
                if setting == "base.data" and limits["user_weights"]:
                    self._check_used()

    def _cuts_texts(self, setting: str) -> bool:
        """Whether texts of this source are cut, which are tokenized anew then."""
        if not self.config.truncation.of_texts or self.named[setting].folder is not None:
            return False
        return setting == "data" or (setting == "eval_data" and "same" in self.config.eval_truncation)

    def _check_used(self) -> None:
        """ConfigError for weights that nothing would read: a base learns without weights."""
        if METHODS[self.config.method].trains_on != "responses":
            raise ConfigError(
                f"response_weights of base.data {self.config.base.data!r} are not used by method {self.config.method}, "
                "whose base learns without weights; leave the column out of that file"
            )

    def split(self) -> dict[str, SegmentStore | None]:
        """Write the stores of the splits; None for those without rows."""
        train, held_out = self._rankable("data"), None
        if "eval_data" in self.named:
            held_out = self._rankable("eval_data")
        elif self.config.eval_ratio > 0:
            train, held_out = self._hold_out(train)
        stores = {"train": self._write("train", "data", train, cut=self.config.truncation.active)}
        if held_out is not None:
            setting = "eval_data" if "eval_data" in self.named else "data"
            for name, truncation in zip(TEST_SPLITS, sorted(self.config.eval_truncation), strict=False):
                stores[name] = self._write(name, setting, held_out, cut=truncation == "same")
        if "base.data" in self.named:
            stores["sft"] = self._write("sft", "base.data", Part.whole(self.stores["base.data"]))
        elif wants_best(self.config) and (best := stores["train"]) is not None:
            stores["sft"] = write_split(best_responses(best.tables()), self.directory / "sft")
        return stores

    def _rankable(self, setting: str) -> Part:
        """All rows; of candidates those that can be ranked, as pairs can."""
        source, store = self.named[setting], self.stores[setting]
        part = Part.whole(store)
        if source.kind != "candidates" or source.holds_pairs:
            return part
        bad = unranked(store, source.path)
        self.rejects.append(bad)
        return part.without(bad["row"])

    def _hold_out(self, part: Part) -> tuple[Part, Part]:
        source = self.named["data"]
        keys = source.prompt_keys(part.store)
        for bad in self.rejects:
            keys = keys.filter(~keys["row"].is_in(bad["row"].implode()))
        train, held_out = part.hold_out(keys, self.config.eval_ratio, self.config.seed)
        if held_out.keep.any():
            source.check_as_asked(self.config)
        return train, held_out

    def _write(self, name: str, setting: str, part: Part, *, cut: bool = False) -> SegmentStore | None:
        """Write a split, cut or not, of a check its first rows; a ready folder of the same segments is linked."""
        import polars as pl

        from pyprefopt.data.reading.rejects import no_rejects
        from pyprefopt.data.tokenization.identical_pairs import IDENTICAL

        config, source, target = self.config, self.named[setting], self.directory / name
        if target.is_symlink():  # of an earlier try
            target.unlink()
        if (
            source.folder is not None
            and part.is_whole(self.first)
            and not part.store.manifest["settings"]["user_weights"]
            and not source.holds_pairs
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.folder, target_is_directory=True)
            return part.store
        tables, rejects = part.tables(), list[pl.DataFrame]()
        if cut and setting in self.cut_texts:
            tables = self._cut_texts_of(setting, part, rejects).tables()
        elif cut and source.folder is None:
            tables = cut_responses(tables, config.truncation, self.tokenizer, source.path, rejects)
        if source.holds_pairs:
            tables = as_candidates(tables)
        store = write_split(tables, target, self.first)
        if cut and source.folder is None:
            self.identical[name] = sum(bad.filter(reason=IDENTICAL).height for bad in rejects)
            if name != "eval_cut":
                self.rejects += rejects
            else:
                self._warn_of_lost(pl.concat([no_rejects(), *rejects]))
        if store is not None and source.folder is None and source.kind == "preferences":
            write_planted(source.rows, store, target.with_name(f"{name}_planted"))
        return store

    def _warn_of_lost(self, rejects: pl.DataFrame) -> None:
        """Warn of test rows that are used, whole, and are not among the cut ones."""
        from pyprefopt.data.reading.rejects import count_rejects

        if rejects.height:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in count_rejects(rejects).items())
            logger.warning(
                "eval_cut: %s %s left out of the cut test rows (%s); whole they are used",
                counted(rejects.height, "row"), agreeing(rejects.height, "are"), reasons,
            )  # fmt: skip

    def _cut_texts_of(self, setting: str, part: Part, rejects: list[pl.DataFrame]) -> Part:
        """The same rows with their texts cut; those that cannot be used so are put to the rejects."""
        import polars as pl

        from pyprefopt.data.reading.rejects import REJECTS

        rows = pl.Series(part.rows[part.keep])
        path = self.directory / PREPARED / f"{setting}_cut" / REJECTED
        if path.exists():
            rejects.append(pl.read_ndjson(path, schema=REJECTS).filter(pl.col("row").is_in(rows.implode())))
        return Part.whole(self.cut_texts[setting]).only(rows)

    def report_rejects(self) -> None:
        """Raise for bad rows, or record them in `rejected.jsonl`, and those that were dropped by a setting."""
        import polars as pl

        from pyprefopt.data.reading.rejects import REJECTS, no_rejects, raise_for, write_rejected

        paths = (self.directory / PREPARED / setting / REJECTED for setting in self.named)
        before = [pl.read_ndjson(path, schema=REJECTS) for path in paths if path.exists()]
        rejects = pl.concat([no_rejects(), *before, *self.rejects])
        if rejects.is_empty():
            return
        if self.config.on_error == "raise":
            raise_for(rejects, self.counts()["rows_in"], command=skip_command(), recorded=REJECTED)
        write_rejected(self.directory / REJECTED, rejects)

    def reasons(self) -> dict[str, int]:
        """Why rows were left out: reason -> how many."""
        found: Counter[str] = Counter()
        for store in self.stores.values():
            found.update(store.manifest["rejected"])
        for frame in self.rejects:
            found.update(frame["reason"].to_list())
        return dict(found)

    def counts(self) -> dict[str, Any]:
        """Rows, responses and tokens, for the manifest and the final table; those of ready folders too."""
        from pyprefopt.data.reading.rejects import DROPPED

        manifests = [store.manifest for store in self.stores.values()]
        later = sum(frame.height for frame in self.rejects)
        dropped = {name: sum(manifest["rejected"].get(name, 0) for manifest in manifests) for name in DROPPED}
        return {
            "rows_in": sum(manifest["rows_in"] for manifest in manifests),
            "rows_used": sum(manifest["rows"] for manifest in manifests) - later,
            "rows_rejected": sum(sum(manifest["rejected"].values()) for manifest in manifests) + later,
            "rows_dropped": {name: count for name, count in dropped.items() if count},
            "responses_cut": sum(manifest["responses_cut"] for manifest in manifests),
            "tokens_read": sum(manifest["tokens"] for manifest in manifests),
        }


def show_rejected(data: Artifact, output_dir: Path) -> None:
    """Put the list of rows that were left out where the user looks, and none where none were."""
    target = output_dir / REJECTED
    if not (data.directory / REJECTED).exists():
        target.unlink(missing_ok=True)  # of earlier data
        return
    atomic_write(target, (data.directory / REJECTED).read_bytes())
    from pyprefopt.data.reading.rejects import log_dropped

    dropped, rows_in = data.facts["rows_dropped"], data.facts["rows_in"]
    if bad := data.facts["rows_rejected"] - sum(dropped.values()):
        logger.warning("left out as bad: %d of %s; reasons in %s", bad, counted(rows_in, "row"), target)
    log_dropped(dropped, rows_in, f"; they are in {target}")


def skip_command() -> str | None:
    """The user's command line again; None where the run was not started by our script."""
    script, *arguments = sys.argv
    if Path(script).name == "pyprefopt":
        return shlex.join(["pyprefopt", *arguments])
    if Path(script).name != "train.py":
        return None
    kept = [argument for argument in arguments if not argument.startswith(("--local_rank", "--local-rank"))]
    return shlex.join(["deepspeed", script, *kept])


@dataclass(frozen=True, kw_only=True)
class Data(Stage):
    """Segments of every split, and the tokenizer: made of these settings and of every file that is read.

    Files and tokenizers count by their content, wherever they are.
    """

    name: str = "data"
    version: str = __version__  # another one may read, render or tokenize otherwise
    eval_ratio: float
    columns: tuple[str, ...]
    format: str
    aspect: str | None
    on_error: str
    max_prompt_tokens: int
    prompt_overflow: str
    max_tokens: int
    min_response_tokens: int
    score_reasoning: bool
    truncation: Truncation
    eval_truncation: tuple[str, ...]
    tokenizer: Tokenizer
    first: int | None  # rows of a split that a check takes
    seed: int
    kind: str  # of rows: preferences or candidates
    boundary: str  # of prompt and responses: split, or join for a reward model
    best: bool  # whether a base learns the best of the candidates
    files: Mapping[str, str]  # setting -> hash of the content of the files that it names
    inputs: Mapping[str, Sequence[HashedFile]] = unkeyed()  # setting -> the files that were hashed for it

    @classmethod
    def of(cls, config: RunConfig) -> Data:
        """The data of a run."""
        named = (
            "eval_ratio", "columns", "format", "aspect", "on_error", "max_prompt_tokens", "prompt_overflow",
            "max_tokens", "min_response_tokens", "score_reasoning", "seed",
        )  # fmt: skip
        sources = named_sources(config)
        return cls(
            **{name: getattr(config, name) for name in named},
            truncation=config.truncation,
            eval_truncation=tuple(sorted(config.eval_truncation)),
            tokenizer=open_tokenizer(config),
            first=2 * config.global_batch_size if config.check else None,  # enough to try a few steps
            kind=kind_of_rows(config),
            boundary=boundary_of(config),
            best=wants_best(config),
            files={setting: source.content_hash() for setting, source in sources.items()},
            inputs={setting: source.inputs for setting, source in sources.items()},
        )

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Prepare, check, hold out, truncate; write `train`, `sft` and those of test rows (where they have rows)."""
        tokenizer = self.tokenizer
        sources = _Sources(runtime, tokenizer, directory, self.inputs, self.first)
        sources.prepare()
        stores = sources.split()
        sources.report_rejects()
        for name in ("train", "sft"):
            if name in stores and stores[name] is None:
                counts = ", ".join(f"{reason}: {count:,}" for reason, count in sources.reasons().items())
                where = "" if runtime.check else f"; each is in {directory / REJECTED}"
                raise DataError(f"no row is left for '{name}' ({counts}){where}")
        shutil.rmtree(directory / PREPARED, ignore_errors=True)
        tokenizer.save(directory / "tokenizer")
        whole = {name: store for name, store in stores.items() if store is not None}
        weights = {
            name: ValueStore.open(weights_of(directory / name)).fingerprint
            for name in whole
            if weights_of(directory / name).exists()
        }
        from pyprefopt.data.tokenization.identical_pairs import IDENTICAL

        facts: dict[str, Any] = sources.counts()
        facts |= {name: {"rows": store.num_rows, "tokens": int(store.lengths.sum())} for name, store in whole.items()}
        for name, count in sources.identical.items():
            facts.setdefault(name, {"rows": 0, "tokens": 0})[IDENTICAL] = count
        fingerprint = content_hash([{name: store.fingerprint for name, store in whole.items()}, tokenizer.fingerprint])
        longest = max(int(store.longest_rows.max()) for store in whole.values())  # tokens of a prompt and one response
        sizes = {"vocab_size": tokenizer.vocab_size, "longest": longest}
        return {"facts": facts, "fingerprint": fingerprint, "weights": weights, **sizes}


def rows_hash(data: Artifact) -> str:
    """Hash of the files that the data was read from."""
    return content_hash(data.reads["files"])
