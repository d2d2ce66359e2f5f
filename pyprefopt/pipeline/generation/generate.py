"""`pyprefopt generate`: answers to a set of prompts, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.data.tokenization.segments import load_tokenizer
from pyprefopt.errors import ArtifactError, ConfigError, DataError, check, check_number
from pyprefopt.generation.decoders import Decoder
from pyprefopt.generation.prompts import read_prompts
from pyprefopt.generation.sampler import Sampling
from pyprefopt.generation.vllm_engine import require_vllm
from pyprefopt.modeling.checkpoints.source import find_adapter
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.work_folder import work_folder
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import tokenizer_source
from pyprefopt.stages.generation.samples import Engine, Samples, describe_decoders, read_samples
from pyprefopt.stages.models import Source, vocabulary_difference
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import atomic_write, content_hash

if TYPE_CHECKING:
    import polars as pl


def generate_file(
    config: RunConfig,
    out: str | Path,
    *,
    ref: str | None = None,
    decoders: Sequence[Decoder],
    sampling: Sampling,
    samples: int = 1,
    engine: Engine = "own",
) -> pl.DataFrame:
    """Generate answers to the prompts of `config.data` with the model `config.model`, and write them to `out`.

    Parts are kept in `output_dir`: a killed call goes on where it was, and the same call again generates nothing. The
    samples depend on neither the number of ranks nor the batches; log-probs may differ in their last digit.

    Args:
        config: the prompts, the policy (or a LoRA adapter, which is put on `ref`), and how texts are read.
        out: a .parquet file: a line a sample.
        ref: the policy's reference.
        decoders: one or several; of several the file has a column for each setting in which they differ.
        sampling: how tokens are drawn.
        samples: of each prompt and decoder.
        engine: own; or vllm, plain sampling of one model where vLLM is installed.

    Returns:
        What was written.

    Raises:
        ConfigError: a decoder needs a reference, or a setting breaks a rule.
        ArtifactError: `out` is there, and `config.overwrite` is not set.
        DataError: bad prompts.
    """
    target = Path(out)
    check(target.suffix == ".parquet", "out", str(target), "a .parquet file")
    inputs = {path.expanduser().resolve() for path in files_named(config.data)}
    check(target.resolve() not in inputs, "out", str(target), "another file than the prompts")
    if ranks.is_main() and target.exists() and not config.overwrite:
        raise ArtifactError(f"{target} is there already; choose another --out, or pass --overwrite to replace it")
    check_number("samples", samples, whole=True)
    check(samples > 0, "samples", samples, "> 0")
    for decoder in decoders:
        decoder.check_ref(ref)
    if engine == "vllm":
        require_vllm(decoders, ref)
        check(ranks.world_size() == 1, "engine", engine, "own on several ranks", "vLLM uses all GPUs by itself")
    with work_folder(config):
        found = with_settings_of(
            decoders, read_samples(sample(Pipeline(config), config.model, ref, decoders, sampling, samples, engine)[0])
        )
        if ranks.is_main():
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(target, found.write_parquet)
    return found


def sample(
    pipeline: Pipeline,
    policy: str,
    ref: str | None,
    decoders: Sequence[Decoder],
    sampling: Sampling,
    samples: int,
    engine: Engine = "own",
) -> tuple[Artifact, Samples]:
    """The samples of the prompts in the run's data, found or made, and the stage that makes them.

    Args:
        pipeline: of the run whose data, dtype and tokenizer settings count.
        policy: a model; or a LoRA adapter, which is put on `ref`.
        ref: its reference.
        decoders: rules; `read_samples` numbers their samples in this order.
        sampling: how tokens are drawn.
        samples: of each prompt and decoder.
        engine: what generates.

    Raises:
        ConfigError: a model that is not there, or a reference of another vocabulary. DataError: bad prompts.
    """
    config = pipeline.config
    given = None if ref is None else Source.given(ref, config, setting="ref")
    adapter, brings = find_adapter(policy), policy
    if adapter is None:
        ours = Source.given(policy, config, setting="policy")
    elif given is None:
        raise ConfigError(f"policy is the adapter {adapter}; give ref, the model that it was trained on")
    else:
        ours, brings = Source.adapted(adapter, given), given.path
    tokenizer = load_tokenizer(
        tokenizer_source(replace(config, model=brings)), eos_token=config.eos_token,
        chat_template=config.chat_template, trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    if given is not None and adapter is None:
        difference = vocabulary_difference(given.path, tokenizer.json)
        check(difference is None, "ref", ref, "of the policy's tokenizer", difference or "")
    prompts = read_prompts(config.data, columns=config.columns, on_error=config.on_error)
    if prompts.is_empty():
        raise DataError(f"{' '.join(map(str, files_named(config.data)))}: no prompt is left; all rows are bad")
    stage = Samples(
        prompts=content_hash(prompts.write_json()), tokenizer=tokenizer, policy=ours, ref=given,
        decoders=describe_decoders(decoders), sampling=sampling, samples=samples, engine=engine, dtype=config.dtype,
        rows=prompts, rules=tuple(decoders),
    )  # fmt: skip
    return pipeline.run(stage), stage


def files_named(data: Any) -> list[Path]:
    """The paths by which data is named; none of a table."""
    names = data if isinstance(data, list | tuple) else [data]
    return [Path(name) for name in names if isinstance(name, str | Path)]


def with_settings_of(decoders: Sequence[Decoder], samples: pl.DataFrame) -> pl.DataFrame:
    """The samples with the settings in which their decoders differ, in the place of the decoder's number."""
    import polars as pl

    columns: dict[str, list[Any]] = {
        f.name: [getattr(decoder, f.name) for decoder in decoders] for f in fields(decoders[0])
    }
    differ = {name: values for name, values in columns.items() if len({*values}) > 1}
    settings = pl.DataFrame({"decoder": range(len(decoders)), **differ}, schema_overrides={"decoder": pl.UInt32})
    joined = samples.join(settings, on="decoder", maintain_order="left").drop("decoder")
    return joined.select("row", *differ, pl.exclude("row", *differ))
