"""Stage `data`: from files to segments on disk. Everything is read and checked before anything is used."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pyprefopt.data import embedded
from pyprefopt.data.batching.loader import permutation
from pyprefopt.data.store.segments import USER_WEIGHTS
from pyprefopt.errors import ConfigError, DataError, counted
from pyprefopt.losses import METHODS
from pyprefopt.modeling.checkpoints.load import toy_config
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.candidates import best_responses, check_kind, drop_unranked
from pyprefopt.stages.planted_tokens import has_planted, planted_mask, planted_spans
from pyprefopt.stages.prepared import Part, Prepared, is_prepared
from pyprefopt.stages.stage import Artifact, Stage, content_hash
from pyprefopt.storage.files import atomic_write, sha256_file

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.frames import ReadResult
    from pyprefopt.data.tokenization.segments import Tokenizer

DATA_SETTINGS = (
    "data", "eval_data", "eval_ratio", "format", "on_error", "max_prompt_tokens", "prompt_overflow", "max_tokens",
    "truncation", "tokenizer", "eos_token", "chat_template", "check",
)  # fmt: skip

REJECTED = "rejected.jsonl"  # rows that were left out, and why: in the artifact, and from there in output_dir

logger = logging.getLogger("pyprefopt")


def data_stage(config: RunConfig) -> Stage:
    """What the data depends on: settings, and the content of every file that is read."""
    given = asdict(config)
    settings = {name: given[name] for name in DATA_SETTINGS} | {"base.data": config.base.data}
    settings |= {"kind": kind_of_rows(config), "best": wants_best(config)}
    data = [source for source in (config.data, config.eval_data, config.base.data) if source not in (None, "chosen")]
    tokens = [source for source in (config.chat_template, config.tokenizer or config.model) if source is not None]
    inputs = {source: _hash_data(source) for source in data} | {source: _hash_source(source) for source in tokens}
    if config.data is None:
        inputs["embedded data"] = sha256_file(embedded.__file__)
    if config.model is None:
        inputs["embedded model"] = content_hash(toy_config(0))
    return Stage("data", settings, inputs, seed=config.seed)


def _hash_data(source: str) -> str:
    """Hash of a prepared folder, or of every file that a path, folder or glob means."""
    from pyprefopt.data.reading.files import find_files

    if is_prepared(source):
        return Prepared("data", source).content_hash()
    files, _ = find_files(source)
    return content_hash([sha256_file(file.path) for file in files])


def _hash_source(source: str) -> str:
    path = Path(source).expanduser()
    if path.is_dir():  # a model or tokenizer: its tokenizer and template, not its weights
        return content_hash({p.name: sha256_file(p) for p in sorted(path.glob("*")) if p.suffix in (".json", ".jinja")})
    return sha256_file(path) if path.is_file() else source  # the name of a hub model or of a shipped template


def open_tokenizer(config: RunConfig) -> Tokenizer:
    """The run's tokenizer: `--tokenizer`, or the model's own."""
    from pyprefopt.data.tokenization.segments import load_tokenizer

    source = tokenizer_source(config)
    if source is None:
        return Prepared("data", config.data or "").tokenizer(config)
    return load_tokenizer(
        source,
        eos_token=config.eos_token,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
    )


def tokenizer_source(config: RunConfig) -> str | None:
    """Where the run's tokenizer is; None: in the prepared folder `data`. ConfigError where nothing brings one."""
    named = (config.tokenizer, config.eos_token, config.chat_template)
    if is_prepared(config.data) and named == (None, None, None):
        return None
    source = config.tokenizer or config.model
    if source is None or (config.tokenizer is None and source.endswith(".json")):
        raise ConfigError("a config.json brings no tokenizer; set tokenizer to a folder or a tokenizer.json")
    return source


def build_data(config: RunConfig, directory: Path) -> dict[str, Any]:
    """Read, check, hold out, tokenize, truncate; write the stores `train`, `eval` and `sft` (where they have rows)."""
    from pyprefopt.data.store.segments import SegmentStore, ValueStore

    config = _with_toy(config, directory)
    tokenizer = open_tokenizer(config)
    with tqdm(desc="data", unit="step") as bar:
        intake = Intake(config, tokenizer, bar)
        splits = intake.splits()
    intake.settle(directory)
    facts: dict[str, Any] = intake.counts()
    stores: dict[str, SegmentStore] = {}
    weights: dict[str, str] = {}
    for name, segments in splits.items():
        if segments.is_empty():
            if name == "eval":
                continue
            raise DataError(f"no row is left for '{name}'; see the reasons in {config.output_dir}/rejected.jsonl")
        if isinstance(segments, Part):
            store = stores[name] = segments.write(directory / name)
            given = store.table[USER_WEIGHTS] if USER_WEIGHTS in store.table.column_names else None
        else:
            store = stores[name] = SegmentStore.write(segments.drop(USER_WEIGHTS, strict=False), directory / name)
            given = segments.get_column(USER_WEIGHTS, default=None)
        if given is not None:
            _check_used(config, name)
            weights[name] = ValueStore.write(directory / f"{name}_weights", store, given, key=USER_WEIGHTS).fingerprint
        facts[name] = {"rows": store.num_rows, "tokens": int(store.lengths.sum())}
        if name in intake.spans:
            planted = planted_mask(segments, intake.spans[name])
            ValueStore.write(directory / f"{name}_planted", store, planted, key="planted")
    tokenizer.save(directory / "tokenizer")
    if config.model is None:
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        content = json.dumps(toy_config(tokenizer.vocab_size, **ids), indent=2)
        (directory / "model").mkdir(exist_ok=True)
        atomic_write(directory / "model" / "config.json", content.encode())
    fingerprint = content_hash([{name: store.fingerprint for name, store in stores.items()}, tokenizer.fingerprint])
    longest = max(int(store.longest_rows.max()) for store in stores.values())  # tokens of a prompt and one response
    sizes = {"vocab_size": tokenizer.vocab_size, "longest": longest}
    return {"facts": facts, "fingerprint": fingerprint, "weights": weights, **sizes}


def _check_used(config: RunConfig, split: str) -> None:
    """ConfigError for weights that nothing would read: a base learns without weights."""
    if split == "sft" and METHODS[config.method].trains_on != "responses":
        raise ConfigError(
            f"response_weights of base.data {config.base.data!r} are not used by method {config.method}, whose base "
            "learns without weights; leave the column out of that file"
        )


def kind_of_rows(config: RunConfig) -> str:
    """What `data` and `eval_data` must hold: candidates for a method that trains on them, else preferences."""
    return "candidates" if METHODS[config.method].trains_on == "candidates" else "preferences"


def wants_best(config: RunConfig) -> bool:
    """Whether a base is to be trained on candidates, which have no chosen responses: it learns the best ones."""
    trained = config.policy_init == "base" and config.base.path is None and config.base.data == "chosen"
    return trained and kind_of_rows(config) == "candidates"


def split_names(data: Path) -> list[str]:
    """Which of the pair splits the data stage wrote."""
    return [name for name in ("train", "eval") if (data / name).exists()]


def _with_toy(config: RunConfig, directory: Path) -> RunConfig:
    """Fill in the embedded set's files where no data was given."""
    if config.data is not None:
        return config
    paths = embedded.write_toy(directory / "toy")
    tokenizer = config.tokenizer or (str(paths.tokenizer) if config.model is None else None)
    base = replace(config.base, data=str(paths.sft))
    train, test = paths.train, paths.test
    if kind_of_rows(config) == "candidates":
        train, test = embedded.write_candidates(directory / "toy")
    return replace(config, data=str(train), eval_data=str(test), base=base, tokenizer=tokenizer)


@dataclass
class Intake:
    """Reads the run's files and keeps the books: rows in = rows used + rows rejected."""

    config: RunConfig
    tokenizer: Tokenizer
    bar: tqdm[Any]
    rejects: list[pl.DataFrame] = field(default_factory=list)
    rows_in: int = 0
    rows_used: int = 0
    rejected_before: int = 0  # when a prepared folder was made
    responses_cut: int = 0
    spans: dict[str, pl.DataFrame] = field(default_factory=dict)  # split -> row, segment, spans of planted tokens

    def splits(self) -> dict[str, Any]:
        """Segments of every split (a frame, or a Part of a prepared folder), truncated where training asks for it."""
        from pyprefopt.data.reading.frames import scan_instructions

        config = self.config
        own_sft = config.base.data != "chosen"
        self.bar.reset(total=(1 + (config.eval_data is not None) + own_sft) + (2 + own_sft))  # read, then tokenized
        splits = self._pairs()
        if is_prepared(config.base.data):
            splits["sft"] = self._prepared("base.data", config.base.data)
        elif own_sft:
            splits["sft"] = self._tokenize("sft", self._read(scan_instructions, config.base.data))
        elif wants_best(config):
            train = splits["train"]
            splits["sft"] = best_responses(train.frame() if isinstance(train, Part) else train)
        if config.check:  # the whole input has been read and checked; a few optimizer steps' worth is enough to try
            count = 2 * config.global_batch_size
            splits = {
                name: part.first(count) if isinstance(part, Part) else first_rows(part, count)
                for name, part in splits.items()
            }
        return splits

    def _pairs(self) -> dict[str, Any]:
        """The splits `train` and `eval`: of two sources, or of one by prompt."""
        config = self.config
        assert config.data is not None  # noqa: S101  (filled by _with_toy)
        splits: dict[str, Any] = {}
        if is_prepared(config.data):
            splits["train"] = self._prepared("data", config.data)
            if config.eval_data is None:
                splits = splits["train"].hold_out(lambda prompts: hold_out(prompts, config.eval_ratio, config.seed))
        else:
            pairs = self._read_rows(config.data)
            if config.eval_data is None:
                pairs_frame, held_out_frame = hold_out(pairs.frame, config.eval_ratio, config.seed)
                pairs, held_out = replace(pairs, frame=pairs_frame), replace(pairs, frame=held_out_frame)
            splits["train"] = self._truncate(self._tokenize("train", pairs), pairs.file)
            if config.eval_data is None:
                splits["eval"] = self._tokenize("eval", held_out)
        if is_prepared(config.eval_data):
            splits["eval"] = self._prepared("eval_data", config.eval_data or "")
        elif config.eval_data is not None:
            splits["eval"] = self._tokenize("eval", self._read_rows(config.eval_data))
        return splits

    def _prepared(self, setting: str, path: str) -> Part:
        folder = Prepared(setting, path)
        folder.check(self.config, self.tokenizer)
        self.rows_in += folder.manifest["rows_in"]
        self.rows_used += folder.manifest["rows"]
        self.rejected_before += sum(folder.manifest["rejected"].values())
        self._count_cut(folder.manifest["responses_cut"], folder.manifest["settings"]["max_tokens"], path)
        self.bar.update(2)
        return folder.part()

    def _read_rows(self, path: str) -> ReadResult:
        """Pairs, or candidates with what their method needs of them."""
        import polars as pl

        from pyprefopt.data.reading.frames import scan_candidates, scan_preferences

        kind = kind_of_rows(self.config)
        scan = scan_preferences if kind == "preferences" else scan_candidates
        try:
            read = self._read(scan, path, format=self.config.format)
        except DataError:
            if self.config.format == "auto":
                check_kind(self.config.method, path, kind)
            raise
        if kind == "preferences":
            return read
        sets, unranked = drop_unranked(read.frame)
        self.rejects.append(unranked.with_columns(file=pl.lit(read.file)))
        return replace(read, frame=sets)

    def _read(self, scan: Callable[..., ReadResult], path: str, **options: Any) -> ReadResult:
        self.bar.set_postfix_str(f"reading {Path(path).name}")
        result = scan(path, **options)
        self.bar.update()
        self.rejects.append(result.rejects)
        self.rows_in += result.frame.height + result.rejects.height  # rows, or sets of rows of one prompt
        return result

    def _tokenize(self, name: str, read: ReadResult) -> pl.DataFrame:
        import polars as pl

        from pyprefopt.data.tokenization.segments import tokenize_rows
        from pyprefopt.data.tokenization.token_columns import attach_weights, weight_columns

        config = self.config
        self.bar.set_postfix_str(f"tokenizing {name}, {read.frame.height:,} rows")
        result = tokenize_rows(
            read.frame,
            self.tokenizer,
            max_prompt_tokens=config.max_prompt_tokens,
            prompt_overflow=config.prompt_overflow,
            max_tokens=config.max_tokens,
        )
        self.bar.update()
        segments, rejects = result.segments, result.rejects
        if names := weight_columns(read.frame.columns):
            logger.info("%s: the weights of %s multiply the method's", read.file, " and ".join(names))
            try:
                segments, badly_weighted = attach_weights(segments, read.frame)
            except DataError as error:
                raise DataError(f"{read.file}: {error}") from None
            rejects = pl.concat([rejects, badly_weighted])
        self.rejects.append(rejects.with_columns(file=pl.lit(read.file)))
        self.rows_used += read.frame.height - rejects.height
        self._count_cut(result.responses_cut, config.max_tokens, read.file)
        if has_planted(read.frame.schema):
            self.spans[name] = planted_spans(read.frame)
        return segments

    def _count_cut(self, responses: int, max_tokens: int, source: str) -> None:
        """Add to the books, and say which limit cut: a prepared folder has its own."""
        self.responses_cut += responses
        if responses:
            logger.warning("%s: %s cut to fit max_tokens = %d", source, counted(responses, "response"), max_tokens)

    def _truncate(self, segments: pl.DataFrame, file: str) -> pl.DataFrame:
        from pyprefopt.data.tokenization.identical_pairs import without_identical
        from pyprefopt.data.truncation.dispatch import cut

        rule = self.config.truncation
        if not rule.active:
            return segments
        shorter = cut(segments, rule, tokenizer=self.tokenizer)
        kept: pl.DataFrame
        kept, rejects = without_identical(shorter, file)
        self.rejects.append(rejects)
        self.rows_used -= rejects.height
        return kept

    def settle(self, directory: Path) -> None:
        """Raise for bad rows, or record them in `rejected.jsonl`."""
        import polars as pl

        from pyprefopt.data.reading.rejects import no_rejects, raise_for, write_rejected

        rejects, target = pl.concat([no_rejects(), *self.rejects]), directory / REJECTED
        if rejects.is_empty():
            return
        if self.config.on_error == "raise":
            raise_for(rejects, self.rows_in, command=skip_command(), recorded="rejected.jsonl")
        write_rejected(target, rejects)

    def counts(self) -> dict[str, int]:
        """The books, for the manifest and the final table."""
        rejected = sum(frame.height for frame in self.rejects) + self.rejected_before
        if self.rows_in != self.rows_used + rejected:
            raise RuntimeError(f"rows went missing: {self.rows_in} in, {self.rows_used} used, {rejected} rejected")
        return {
            "rows_in": self.rows_in,
            "rows_used": self.rows_used,
            "rows_rejected": rejected,
            "responses_cut": self.responses_cut,
        }


def show_rejected(data: Artifact, output_dir: Path) -> None:
    """Put the list of rows that were left out where the user looks, and none where none were."""
    target = output_dir / REJECTED
    if not (data.directory / REJECTED).exists():
        target.unlink(missing_ok=True)  # of earlier data
        return
    atomic_write(target, (data.directory / REJECTED).read_bytes())
    left_out, rows = data.facts["rows_rejected"], counted(data.facts["rows_in"], "row")
    logger.warning("left out as bad: %d of %s; reasons in %s", left_out, rows, target)


def hold_out(frame: pl.DataFrame, ratio: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off `ratio` of the prompts (at least one), so that no prompt is on both sides; seeded, order kept."""
    import polars as pl

    if ratio == 0 or frame.height < 2:
        return frame, frame.clear()
    prompt = pl.struct("prompt").struct.json_encode()
    grouped = frame.with_columns(pl.col("row").min().over(prompt).alias("_group"))
    groups = grouped["_group"].unique().sort().to_numpy()
    if len(groups) < 2:
        raise DataError(
            "eval_ratio must hold out whole prompts, but all rows have the same one; set eval_ratio 0, or eval_data"
        )
    count = min(max(1, round(ratio * len(groups))), len(groups) - 1)
    picked = groups[permutation(len(groups), seed=seed, epoch=0)[:count]]
    held = grouped["_group"].is_in(pl.Series(picked).implode())
    return frame.filter(~held), frame.filter(held)


def first_rows(segments: pl.DataFrame, count: int) -> pl.DataFrame:
    """The segments of the first `count` rows."""
    import polars as pl

    return segments.filter(pl.col("row").is_in(segments["row"].unique().sort().head(count).implode()))


def skip_command() -> str | None:
    """The user's command line again; None where the run was not started by our script."""
    script, *arguments = sys.argv
    if Path(script).name == "pyprefopt":
        return shlex.join(["pyprefopt", *arguments])
    if Path(script).name != "train.py":
        return None
    kept = [argument for argument in arguments if not argument.startswith(("--local_rank", "--local-rank"))]
    return shlex.join(["deepspeed", script, *kept])
