"""`pyprefopt evaluate kl`: how far policy and reference are apart, by position in given or in generated responses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyprefopt import ranks
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import check
from pyprefopt.evaluation.accuracy import prompts_of
from pyprefopt.evaluation.kl import kl_by_position, kl_of_responses
from pyprefopt.generation.decoders import Mixing, Sample
from pyprefopt.generation.sampler import Sampling
from pyprefopt.pipeline.evaluations.opening import WHAT, clear_results, name_data, open_evaluation
from pyprefopt.pipeline.generation.generate import sample
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.score import write_token_table
from pyprefopt.plots import require_matplotlib, save
from pyprefopt.stages.generation.samples import FILE
from pyprefopt.stages.generation.tokens import SampleTokens
from pyprefopt.stages.models import Source, tokenizer_json, vocabulary_difference
from pyprefopt.stages.scores import flat_values, require_finite
from pyprefopt.stages.scoring.divergence import DIRECTIONS, Divergence
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import atomic_write
from pyprefopt.tables import show_table, write_csv

if TYPE_CHECKING:
    import polars as pl

Along = Literal["data", "policy", "ref"]
DRAWN = {"policy": Sample(), "ref": Mixing(a=0)}  # along -> what draws the responses


@dataclass(frozen=True)
class KlResult:
    """What `evaluate_kl` finds."""

    output_dir: Path  # kl.csv, kl.json, tokens.parquet, kl.png, kl.svg
    table: pl.DataFrame  # a line a side and position, of `evaluation.kl.kl_by_position`
    responses: dict[str, dict[str, dict[str, float | None]]]  # side -> direction -> mean, low, high of a response, nats

    def __str__(self) -> str:
        import polars as pl

        rows = [
            {
                "side": side,
                **{name: _with_ends(**ends) for name, ends in found.items()},
            }
            for side, found in self.responses.items()
        ]
        return f"KL of a whole response, nats\n{show_table(pl.DataFrame(rows))}"


def _with_ends(mean: float | None, low: float | None, high: float | None) -> str:
    return f"{mean:.4g}" if low is None else f"{mean:.4g} ({low:.4g} to {high:.4g})"


def evaluate_kl(
    data: Any,
    policy: str | Path,
    ref: str | Path,
    *,
    out: str | Path,
    along: Along = "data",
    samples: int = 1,
    sampling: Sampling | None = None,
    plots: bool = True,
    **settings: Any,
) -> KlResult:
    """Measure the divergence of policy and reference at every position of responses.

    At each token both models' whole distributions are compared, exactly. Every rank of a launcher calls this.

    Args:
        data: pairs, as `train` takes them, all of which are taken; along policy or ref prompts, as `generate` does.
        policy: a checkpoint.
        ref: what it is compared with, of the same tokenizer and vocabulary.
        out: the folder that is written; not that of a run.
        along: the responses: those of the data, or (policy, ref) what that model generates to the prompts.
        samples: of each prompt, where they are generated.
        sampling: how tokens are drawn then; its seed is the setting `seed`.
        plots: write the figure too, which needs matplotlib.
        **settings: of a run, such as max_tokens, columns or cache.

    Returns:
        Means by position and by response, and where the files are; `tokens.parquet` has both divergences of every
        token, a line a response. Generated responses are in `samples.parquet`.

    Raises:
        ConfigError: a setting that breaks a rule, a model that is not there or of another tokenizer.
        DataError: bad rows, no pairs, a divergence that is not finite.
        ArtifactError: `out` is a run's folder, or another process writes there.

    Example:
        >>> found = evaluate_kl("pairs.parquet", "runs/dpo/policy", "base", out="kl")  # doctest: +SKIP
        >>> found.responses["chosen"]["kl_policy_ref"]["mean"]  # doctest: +SKIP
        3.1
        >>> evaluate_kl("prompts.jsonl", "runs/dpo/policy", "base", out="kl", along="policy")  # doctest: +SKIP
    """
    check(along in ("data", *DRAWN), "along", along, "data, policy or ref")
    check(ref is not None, "ref", None, "given", "it is what the policy is compared with")
    if along == "data":
        check(samples == 1 and sampling is None, "samples", samples, "left out along data", "nothing is generated")
    if plots:
        require_matplotlib("plots false for tables alone")
    with open_evaluation(data, policy, ref, out, settings, prompts_only=along != "data") as pipeline:
        other = Source.given(str(ref), pipeline.config)
        drawn = replace(sampling or Sampling(), seed=pipeline.config.seed)
        if along == "data":
            tokens = pipeline.data
            difference = vocabulary_difference(other.path, tokenizer_json(tokens))
            remedy = "evaluate accuracy compares models of two tokenizers"
            check(difference is None, "ref", str(ref), "of the policy's tokenizer", f"{difference}; {remedy}")
        else:
            tokens = _generate(pipeline, str(ref), along, drawn, samples, Path(out))
        made = pipeline.run(Divergence(data=tokens, policy=pipeline.start, ref=other, dtype=pipeline.config.dtype))
        store = SegmentStore.open(tokens.directory / "train")
        folders = {name: made.directory / folder for folder, name in DIRECTIONS.items()}
        values = {name: flat_values(folder) for name, folder in folders.items()}
        for name, flat in values.items():
            require_finite(store, flat, name_data(data), what=name, remedy=WHAT)
        prompts = prompts_of(store)
        result = KlResult(Path(out), kl_by_position(store, values, prompts), kl_of_responses(store, values, prompts))
        if ranks.is_main():
            if along == "data":
                (result.output_dir / "samples.parquet").unlink(missing_ok=True)
            clear_results(result.output_dir, "kl")
            record: dict[str, Any] = {"policy": str(policy), "ref": str(ref), "data": name_data(data), "along": along}
            write_csv(result.table, result.output_dir / "kl.csv")
            counted = {"pairs" if along == "data" else "samples": len(prompts)}
            if along != "data":
                record |= {**asdict(drawn), "samples_a_prompt": samples}
            everything = record | counted | result.responses
            atomic_write(result.output_dir / "kl.json", json.dumps(everything, indent=2).encode())
            write_token_table(
                store,
                {name: ValueStore.open(f).check(store).values for name, f in folders.items()},
                result.output_dir / "tokens.parquet",
            )
            if plots:
                from pyprefopt.evaluation.figures import kl_figure

                save(kl_figure(result.table), result.output_dir / "kl", ("png", "svg"))
    return result


def _generate(pipeline: Pipeline, ref: str, along: Along, sampling: Sampling, samples: int, out: Path) -> Artifact:
    """The tokens of responses that one of both models generates; the samples as a file too."""
    made, stage = sample(pipeline, pipeline.config.model, ref, [DRAWN[along]], sampling, samples)
    if ranks.is_main():
        atomic_write(out / "samples.parquet", (made.directory / FILE).read_bytes())
    return pipeline.run(SampleTokens(samples=made, tokenizer=stage.tokenizer, rows=stage.rows))
