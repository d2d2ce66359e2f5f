"""`pyprefopt evaluate accuracy`: how often the beginning of both responses ranks a pair as the data does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyprefopt import ranks
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import DataError, check, did_you_mean
from pyprefopt.evaluation.accuracy import WITHIN, Cuts, Normalize, PrefixScores, format_depth, prompts_of, tables_by
from pyprefopt.pipeline.evaluations.opening import WHAT, clear_results, name_data, open_evaluation
from pyprefopt.plots import require_matplotlib, save
from pyprefopt.stages.models import Source
from pyprefopt.stages.scores import flat_values, require_finite
from pyprefopt.stages.sources import source_of, texts_of
from pyprefopt.stages.transfer import warn_of_two_tokenizers
from pyprefopt.storage.files import atomic_write
from pyprefopt.tables import show_table, write_csv

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.sources import Source as Rows

Signal = Literal["logratio", "logprob"]


@dataclass(frozen=True)
class AccuracyResult:
    """What `evaluate_accuracy` finds."""

    output_dir: Path  # accuracy.csv, accuracy.json, accuracy.png, accuracy.svg
    table: pl.DataFrame  # a line a point: kind, point, accuracy, low, high, ties, pairs, uncut, mean_margin, agreement
    by: pl.DataFrame | None  # the same by group, behind the column that groups
    depth: dict[str, dict[str, float | None]]  # ratio and length: point, low, high
    within: float
    whole: float  # accuracy of whole responses

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
    check(isinstance(cuts, Cuts), "cuts", cuts, "made by Cuts(ratios=…, lengths=…)")
    with open_evaluation(data, policy, ref, out, settings) as pipeline:
        if by is not None:
            _check_column(source_of(pipeline.config, "train").rows, by)
        dtype = pipeline.config.dtype
        scored = {"policy": pipeline.logps_of("policy_logps", pipeline.start, dtype)}
        if ref is not None:
            scored["ref"] = pipeline.logps_of("ref_logps", Source.given(str(ref), pipeline.config), dtype)
        warn_of_two_tokenizers(*scored.values())
        store = SegmentStore.open(pipeline.data.directory / "train")
        values = {name: flat_values(artifact.directory / "train") for name, artifact in scored.items()}
        for name, logps in values.items():
            require_finite(store, logps, name_data(data), what=f"a log-prob of {name}", remedy=WHAT)
        difference = values["policy"].astype(float)
        difference = difference - values["ref"] if ref is not None else difference
        scores, prompts = PrefixScores.of(store, difference, cuts, normalize=normalize), prompts_of(store)
        table, grouped = scores.table(prompts), None
        if by is not None:
            groups = texts_of(pipeline.config, "train", store, (by,))[by].to_list()
            grouped = tables_by(scores, prompts, groups, by)
        result = AccuracyResult(
            Path(out), table, grouped, scores.depth(prompts, within=within), within, float(scores.right[-1].mean())
        )
        if ranks.is_main():
            record = {
                "policy": str(policy), "ref": None if ref is None else str(ref), "data": name_data(data),
                "signal": signal, "normalize": normalize, **asdict(cuts), "within": within, "pairs": len(prompts),
                "prompts": int(prompts.max()) + 1, "whole": result.whole, "depth": result.depth,
            }  # fmt: skip
            _write_accuracy(result, record, plots=plots)
    return result


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


def _write_accuracy(result: AccuracyResult, record: dict[str, Any], *, plots: bool) -> None:
    from pyprefopt.evaluation.figures import accuracy_figure

    clear_results(result.output_dir, "accuracy")
    tables = {"accuracy": result.table}
    if result.by is not None:
        tables[f"accuracy_by_{result.by.columns[0]}"] = result.by
    atomic_write(result.output_dir / "accuracy.json", json.dumps(record, indent=2).encode())
    for title, table in tables.items():
        write_csv(table, result.output_dir / f"{title}.csv")
        if plots:
            figure = accuracy_figure(table, result.whole if title == "accuracy" else None)
            save(figure, result.output_dir / title, ("png", "svg"))
