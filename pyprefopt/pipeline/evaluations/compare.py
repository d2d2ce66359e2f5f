"""`pyprefopt evaluate`: what a policy and its reference say of given pairs, by ratio, length and position."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyprefopt import ranks
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import ArtifactError, DataError, check, did_you_mean
from pyprefopt.evaluation.accuracy import WITHIN, Cuts, Normalize, PrefixScores, format_depth, prompts_of, tables_by
from pyprefopt.evaluation.kl import kl_by_position, kl_of_responses
from pyprefopt.log import run_log
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.overwrite import CONFIG, POLICY
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.score import write_token_table
from pyprefopt.plots import require_matplotlib, save
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.stages.models import Source, vocabulary_difference
from pyprefopt.stages.scores import flat_values, require_finite
from pyprefopt.stages.scoring.divergence import DIRECTIONS, Divergence
from pyprefopt.stages.sources import source_of, texts_of
from pyprefopt.stages.transfer import warn_of_two_tokenizers
from pyprefopt.storage.files import atomic_write, explaining
from pyprefopt.tables import show_table, write_csv

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.sources import Source as Rows

logger = logging.getLogger("pyprefopt")

Signal = Literal["logratio", "logprob"]
FIXED = {"method": "dpo", "eval_ratio": 0.0}  # settings of every evaluation: all pairs are scored, nothing is trained
WHAT = "look for NaN in the weights of policy and ref"


@dataclass(frozen=True)
class AccuracyResult:
    """What `evaluate_accuracy` finds."""

    output_dir: Path  # accuracy.csv, accuracy.json, accuracy.png, accuracy.svg
    table: pl.DataFrame  # a line a point: kind, point, accuracy, low, high, ties, pairs, uncut, mean_margin, agreement
    by: pl.DataFrame | None  # the same by group, behind the column that groups
    depth: dict[str, dict[str, float | None]]  # ratio and length: point, low, high
    within: float

    def __str__(self) -> str:
        import polars as pl

        shown = self.table.with_columns(pl.col(pl.Float64).round(4))
        shown = shown.with_columns(pl.col("point").map_elements("{:g}".format, pl.String))
        return f"{show_table(shown)}\n{format_depth(self.depth, self.within)}"


def evaluate_accuracy(
    data: Any,
    policy: str | Path,
    ref: str | Path | None = None,
    *,
    out: str | Path,
    cuts: Cuts | None = None,
    signal: Signal = "logratio",
    normalize: Normalize = "sum",
    within: float = WITHIN,
    by: str | None = None,
    plots: bool = True,
    **settings: Any,
) -> AccuracyResult:
    """Measure how often the beginning of both responses ranks a pair as the data does.

    Both models score whole responses once; every ratio and length is a prefix sum of these log-probs. Log-probs are
    kept in `out` and used again. Every rank of a launcher calls this.

    Args:
        data: pairs, as `train` takes them; all are taken.
        policy: a checkpoint; its tokenizer counts the tokens.
        ref: what the policy is compared with; it may have another tokenizer. Left out for signal logprob.
        out: the folder that is written; not that of a run.
        cuts: ratios and lengths, and how a ratio becomes a number of tokens.
        signal: of a token, log π − log π_ref (DPO's implicit reward without its beta) or log π alone.
        normalize: a response's sum, or its mean over its tokens.
        within: accuracy that may be missing where the depth says that a prefix is enough.
        by: a column of the data; the same table for each of its values.
        plots: write the figure too, which needs matplotlib.
        **settings: of a run, such as max_tokens, columns or cache.

    Returns:
        The table, the depth, and where the files are.

    Raises:
        ConfigError: a setting that breaks a rule, a model that is not there, `ref` missing.
        DataError: bad rows, no pairs, no such column, a log-prob that is not finite.
        ArtifactError: `out` is a run's folder, or another process writes there.

    Example:
        >>> found = evaluate_accuracy("pairs.parquet", "runs/dpo/policy", "base", out="accuracy")  # doctest: +SKIP
        >>> found.depth["ratio"]["point"]  # doctest: +SKIP
        0.4
    """
    needed = {"logratio": "given with signal logratio", "logprob": "left out with signal logprob"}
    check(signal in needed, "signal", signal, f"one of {', '.join(needed)}")
    check((ref is None) == (signal == "logprob"), "ref", ref, needed[signal], "it is what the policy is compared with")
    check(normalize in ("sum", "mean"), "normalize", normalize, "sum or mean")
    check(0 <= within < 1, "within", within, "in [0, 1)", "0.01 is one point")
    if plots:
        require_matplotlib("plots false for tables alone")
    cuts = cuts or Cuts()
    with _evaluation(data, policy, ref, out, settings) as pipeline:
        if by is not None:
            _check_column(source_of(pipeline.config, "train").rows, by)
        scored = {"policy": pipeline.logps_of("policy_logps", pipeline.start)}
        if ref is not None:
            scored["ref"] = pipeline.logps_of("ref_logps", Source.given(str(ref), pipeline.config))
        warn_of_two_tokenizers(*scored.values())
        store = SegmentStore.open(pipeline.data.directory / "train")
        values = {name: flat_values(artifact.directory / "train") for name, artifact in scored.items()}
        for name, logps in values.items():
            require_finite(store, logps, _name_data(data), what=f"a log-prob of {name}", remedy=WHAT)
        difference = values["policy"].astype(float)
        difference = difference - values["ref"] if ref is not None else difference
        scores, prompts = PrefixScores.of(store, difference, cuts, normalize=normalize), prompts_of(store)
        table, grouped = scores.table(prompts), None
        if by is not None:
            groups = texts_of(pipeline.config, "train", store, (by,))[by].to_list()
            grouped = tables_by(scores, prompts, groups, by)
        result = AccuracyResult(Path(out), table, grouped, scores.depth(prompts, within=within), within)
        if ranks.is_main():
            record = {
                "policy": str(policy), "ref": None if ref is None else str(ref), "data": _name_data(data),
                "signal": signal, "normalize": normalize, **asdict(cuts), "within": within, "pairs": len(prompts),
                "prompts": int(prompts.max()) + 1, "depth": result.depth,
            }  # fmt: skip
            _write_accuracy(result, record, plots=plots)
    return result


def _name_data(data: Any) -> str:
    """What was evaluated, as records have it: the names of files; of a table its type."""
    names = data if isinstance(data, list | tuple) else [data]
    return " ".join(str(name) if isinstance(name, str | Path) else type(name).__name__ for name in names)


def _check_column(rows: Rows, by: str) -> None:
    """DataError, before anything is scored, for a column that is not there, or that the pairs are made of."""
    from pyprefopt.data.reading.catalog import format_of
    from pyprefopt.data.reading.extra_columns import named_in_any_row

    own = format_of(rows.format).names
    there = [name for name in rows.fields if name not in own]
    remedy = f"take one of {', '.join(there)}" if there else "add a column to the data"
    if by in own:
        raise DataError(
            f"by must be a further column of {rows.files[0]}, got {by!r}, which the pairs are read from; {remedy}"
        )
    if not named_in_any_row(rows, (by,)):
        raise DataError(f"{rows.files[0]}: there is no column {by!r} for by{did_you_mean(by, there)}; {remedy}")


@dataclass(frozen=True)
class KlResult:
    """What `evaluate_kl` finds."""

    output_dir: Path  # kl.csv, kl.json, tokens.parquet, kl.png, kl.svg
    table: pl.DataFrame  # a line a side and position, of `evaluation.kl.kl_by_position`
    responses: dict[str, dict[str, dict[str, float]]]  # side -> direction -> mean, low, high of a whole response, nats

    def __str__(self) -> str:
        import polars as pl

        rows = [
            {
                "side": side,
                **{name: "{mean:.4g} ({low:.4g} to {high:.4g})".format(**ends) for name, ends in found.items()},
            }
            for side, found in self.responses.items()
        ]
        return f"KL of a whole response, nats\n{show_table(pl.DataFrame(rows))}"


def evaluate_kl(
    data: Any, policy: str | Path, ref: str | Path, *, out: str | Path, plots: bool = True, **settings: Any
) -> KlResult:
    """Measure the divergence of policy and reference at every position of given responses.

    At each token both models' whole distributions are compared, exactly. Every rank of a launcher calls this.

    Args:
        data: pairs, as `train` takes them; all are taken.
        policy: a checkpoint.
        ref: what it is compared with, of the same tokenizer and vocabulary.
        out: the folder that is written; not that of a run.
        plots: write the figure too, which needs matplotlib.
        **settings: of a run, such as max_tokens, columns or cache.

    Returns:
        Means by position and by response, and where the files are; `tokens.parquet` has both divergences of every
        token, a line a response.

    Raises:
        ConfigError: a setting that breaks a rule, a model that is not there or of another tokenizer.
        DataError: bad rows, no pairs, a divergence that is not finite.
        ArtifactError: `out` is a run's folder, or another process writes there.

    Example:
        >>> found = evaluate_kl("pairs.parquet", "runs/dpo/policy", "base", out="kl")  # doctest: +SKIP
        >>> found.responses["chosen"]["kl_policy_ref"]["mean"]  # doctest: +SKIP
        3.1
    """
    if plots:
        require_matplotlib("plots false for tables alone")
    with _evaluation(data, policy, ref, out, settings) as pipeline:
        other = Source.given(str(ref), pipeline.config)
        difference = vocabulary_difference(other.path, pipeline.data)
        remedy = "evaluate accuracy compares models of two tokenizers"
        check(difference is None, "ref", str(ref), "of the policy's tokenizer", f"{difference}; {remedy}")
        made = pipeline.run(Divergence(data=pipeline.data, policy=pipeline.start, ref=other))
        store = SegmentStore.open(pipeline.data.directory / "train")
        folders = {name: made.directory / folder for folder, name in DIRECTIONS.items()}
        values = {name: flat_values(folder) for name, folder in folders.items()}
        for name, flat in values.items():
            require_finite(store, flat, _name_data(data), what=name, remedy=WHAT)
        prompts = prompts_of(store)
        result = KlResult(Path(out), kl_by_position(store, values, prompts), kl_of_responses(store, values, prompts))
        if ranks.is_main():
            write_csv(result.table, result.output_dir / "kl.csv")
            record = {"policy": str(policy), "ref": str(ref), "data": _name_data(data), "pairs": len(prompts)}
            atomic_write(result.output_dir / "kl.json", json.dumps(record | result.responses, indent=2).encode())
            write_token_table(
                store,
                {name: ValueStore.open(f).check(store).values for name, f in folders.items()},
                result.output_dir / "tokens.parquet",
            )
            if plots:
                from pyprefopt.evaluation.figures import kl_figure

                save(kl_figure(result.table), result.output_dir / "kl", ("png", "svg"))
    return result


def _write_accuracy(result: AccuracyResult, record: dict[str, Any], *, plots: bool) -> None:
    from pyprefopt.evaluation.figures import accuracy_figure

    tables = {"accuracy": result.table}
    if result.by is not None:
        tables[f"accuracy_by_{result.by.columns[0]}"] = result.by
    atomic_write(result.output_dir / "accuracy.json", json.dumps(record, indent=2).encode())
    for title, table in tables.items():
        write_csv(table, result.output_dir / f"{title}.csv")
        if plots:
            save(accuracy_figure(table), result.output_dir / title, ("png", "svg"))


@contextmanager
def _evaluation(
    data: Any, policy: str | Path, ref: str | Path | None, out: str | Path, settings: dict[str, Any]
) -> Iterator[Pipeline]:
    """The stages of an evaluation, in its own folder, whose name and settings it checks."""
    for name, value in settings.items():
        check(name not in FIXED, name, value, "left out of an evaluation", "it trains nothing")
    for setting, model in (("policy", policy), ("ref", ref)):
        if model is not None:
            resolve_source(model, trust_remote_code=bool(settings.get("trust_remote_code")), setting=setting)
    config: RunConfig = configure(**settings, **FIXED, data=data, model=policy, output_dir=out)
    folder = Path(out)
    if any((folder / name).exists() for name in (CONFIG, POLICY)):
        raise ArtifactError(f"out must not be the folder of a run, got '{folder}'; choose another folder")
    ranks.set_threads(config.threads)
    with RunLock(folder), run_log(folder, config.log_level), explaining(folder):
        given = source_of(config, "train")
        if given.folder is not None and given.store.manifest["settings"]["truncation"] and ranks.is_main():
            logger.warning(
                "%s was prepared with truncation (%s): whole responses are here what that has left", given.path,
                ", ".join(f"{name} {value}" for name, value in given.store.manifest["settings"]["truncation"].items()),
            )  # fmt: skip
        yield Pipeline(config)
