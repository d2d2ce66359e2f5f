"""Stages that train: `base` (SFT), `oracle` (DPO) and `policy` (the run's method), all through one trainer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyprefopt import ranks
from pyprefopt.data.batching.loader import StepLoader
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.shuffling import permutation
from pyprefopt.data.store.segments import KINDS, SegmentStore, ValueStore
from pyprefopt.errors import ArtifactError, DataError, agreeing, counted
from pyprefopt.modeling.checkpoints.save import save_policy
from pyprefopt.modeling.checkpoints.source import model_hash
from pyprefopt.modeling.logps import score_logps
from pyprefopt.settings.config import LoraConfig, OptimConfig, RunConfig
from pyprefopt.stages.data import TEST_SPLITS
from pyprefopt.stages.models import Source, open_trained, packing_for
from pyprefopt.stages.saved_tokenizer import tokenizer_files
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.training.engine import init_distributed
from pyprefopt.training.metrics import last_step
from pyprefopt.training.schedule import total_steps
from pyprefopt.training.trainer import FitResult, HeldOut, Job, fit
from pyprefopt.types import unkeyed, unkeyed_names

if TYPE_CHECKING:
    from pyprefopt.losses import Method
    from pyprefopt.modeling.packed_model import PackedModel

# Mean difference a token, in nats, of log-probs computed in two packings.
REFERENCE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}

TEST_PAIRS = "test_pairs.parquet"  # what each test pair got
FEW_STEPS = 10  # optimizer steps of a training below which it is said to be short
STILL = 3e-3  # share of the loss that it must move by
LINES = 6  # of the segments table, whose documents a saved model is compared on

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True, kw_only=True)
class Training(Stage):
    """A model trained by one method.

    World size, ZeRO stage, micro-batches, layout, logging and checkpoints change nothing in the result beyond
    rounding: they are recorded, not keyed.
    """

    name: str  # base, oracle or policy
    data: Artifact
    start: Source
    method: Method
    optim: OptimConfig
    dtype: str
    lora: LoraConfig
    seed: int
    ref_logps: Artifact | None = None
    selection: Artifact | None = None
    token_rewards: Artifact | None = None
    user_weights: Mapping[str, str] | None = None  # hashes of those of the data, which multiply the method's
    fraction: float = 1.0  # of the rows that are trained on
    sample: int = 0  # which such share
    output_dir: Path | None = unkeyed(None)  # the run's, for metrics and policy; None: they stay with the artifact

    collective = True

    def model_path(self, directory: Path) -> Path:
        """Where the trained model is, of an artifact in `directory`."""
        return self.output_dir / "policy" if self.output_dir and self.name == "policy" else directory / "model"

    @property
    def split(self) -> str:
        """The split of the data that is trained on: SFT takes its own where there is one."""
        own = self.method.trains_on == "responses" and (self.data.directory / "sft").exists()
        return "sft" if own else "train"

    def outputs(self, directory: Path) -> Sequence[Path]:
        """The trained model."""
        return (self.model_path(directory),)

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Train, or go on from the folder's last checkpoint; save the model. Every rank calls this."""
        cut = runtime.truncation
        if "reward_head" in self.method.needs and cut.active and cut.ratio != 1 and cut.cut_end == "none":
            logger.warning(
                "a reward model reads the last token, and cut responses end in the middle; truncation.cut_end template "
                "ends them as whole ones do"
            )
        job = self._job(directory, runtime)
        weightless = _count_weightless(job)
        if self.ref_logps is not None:
            check_reference(job, self.ref_logps.directory)
        warn_of_few_steps(job)
        self._warn_of_new_beginning(job)
        result = fit(job)
        if not ranks.is_main():
            return {}
        target = self.model_path(directory)
        with tokenizer_files(self.start.path, runtime, self.data) as files:
            documents = sample_documents(SegmentStore.open(self.data.directory / "train"))
            save_policy(job.model, target, files, state_dict=result.weights, documents=documents)
        write_margins(result, directory / TEST_PAIRS)
        facts = training_facts(result, job.output_dir / "metrics.jsonl", self.name) | weightless
        facts |= convergence_facts(job, result)
        warn_of_still_loss(job, facts)
        recorded = {name: getattr(runtime, name) for name in unkeyed_names(RunConfig)}
        fingerprint = model_hash(target, trust_remote_code=runtime.trust_remote_code)
        return {"facts": facts, "fingerprint": fingerprint, "recorded": recorded | {"world_size": ranks.world_size()}}

    def _warn_of_new_beginning(self, job: Job) -> None:
        """Warn where an earlier training of this stage was begun, and cannot go on; where it can, `fit` tells."""
        step = last_step(job.output_dir / "metrics.jsonl", self.name)
        if ranks.is_main() and step and not (job.directory / "checkpoints").exists():
            logger.warning(
                "%s: the training begins anew: the earlier one (%s in metrics.jsonl) was of other settings or "
                "data, or its checkpoints are gone", self.name, counted(step, "step"),
            )  # fmt: skip

    def _job(self, directory: Path, runtime: RunConfig) -> Job:
        model = self.open_model(runtime)
        packing = packing_for(model, self.data, runtime)
        return Job(
            stage=self.name,
            model=model,
            method=self.method,
            train=self.train_loader(runtime, packing),
            tests=self.test_sets(runtime, packing),
            optim=self.optim,
            run=replace(runtime, output_dir=str(self.output_dir or directory)),
            directory=directory,
            key=self.key,
        )

    def open_model(self, runtime: RunConfig) -> PackedModel:
        """The model to train, as it starts."""
        return open_trained(
            self.start, self.data, runtime,
            needs=self.method.needs, dtype=self.dtype, lora=self.lora, seed=self.seed,
        )  # fmt: skip

    def train_loader(self, runtime: RunConfig, packing: Mapping[str, Any] | None = None) -> StepLoader:
        """The training batches of this rank. SFT takes its own split where there is one, else the chosen responses.

        `packing` is what `packing_for` gives; None: for a model that reads every document alike.
        """
        packing = packing or {"layout": runtime.layout}
        split = self.split
        if self.method.trains_on != "responses":
            return self._loader(runtime, split, self._columns(split), packing)
        only = None if split == "sft" else "chosen"
        return self._loader(runtime, split, {"only": only, **self._weights(split)}, packing)

    def test_sets(self, runtime: RunConfig, packing: Mapping[str, Any]) -> dict[str, HeldOut]:
        """The test rows of each split, with what the method needs and without selection; none in a check.

        Candidates have no chosen response: SFT is then judged by the ranking alone.
        """
        there = [name for name in TEST_SPLITS if (self.data.directory / name).exists()]
        return {} if runtime.check else {name: self._test_set(runtime, name, packing) for name in there}

    def _test_set(self, runtime: RunConfig, split: str, packing: Mapping[str, Any]) -> HeldOut:
        ranking = self._loader(runtime, split, {}, packing)
        if self.method.trains_on != "responses":
            return HeldOut(self._loader(runtime, split, self._columns(split), packing), ranking)
        if KINDS.index("chosen") not in ranking.packer.store.kinds:
            return HeldOut(None, ranking)
        return HeldOut(self._loader(runtime, split, {"only": "chosen", **self._weights(split)}, packing), ranking)

    def _weights(self, split: str) -> dict[str, Any]:
        path = self.data.directory / f"{split}_weights"
        return {"user_weights": ValueStore.open(path)} if self.user_weights and path.exists() else {}

    def _columns(self, split: str) -> dict[str, Any]:
        columns = self._weights(split)
        for name in ("ref_logps", "token_rewards"):
            artifact = getattr(self, name)
            if artifact is not None:
                columns[name] = ValueStore.open(artifact.directory / split)
        if self.selection is not None:
            rule = self.selection.reads["rule"]
            columns["selected"] = ValueStore.open(self.selection.directory / split)
            if rule["chosen_ratio"] is not None:  # the packer divides by it; a threshold has none
                columns |= {name: rule[name] for name in ("chosen_ratio", "rejected_ratio")}
        return columns

    def _loader(
        self, runtime: RunConfig, split: str, columns: dict[str, Any], packing: Mapping[str, Any]
    ) -> StepLoader:
        store = SegmentStore.open(self.data.directory / split)
        if self.method.reads_scores:
            _require_scores(store, split)
        packer = Packer(
            store, last_token="reward_head" in self.method.needs, keep_unweighted=self.method.reads_unweighted,
            budget_names=("max_tokens_per_batch", "max_tokens"), **packing, **columns,
        )  # fmt: skip
        return StepLoader(
            packer,
            groups=draw(store.num_rows, self.fraction if split == self.split else 1.0, self.seed, self.sample),
            global_batch_size=self.optim.global_batch_size,
            max_tokens=runtime.max_tokens_per_batch,
            max_groups=runtime.per_device_train_batch_size,
            seed=self.seed,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
        )


def _require_scores(store: SegmentStore, split: str) -> None:
    """DataError naming the first row whose response has no score."""
    missing = np.flatnonzero(np.isnan(store.scores) & (store.kinds > 0))
    if missing.size:
        raise DataError(
            f"{split} row {store.table['row'][int(missing[0])].as_py()}: a response has no score ({missing.size} such "
            "responses), but loss.margin_scale reads score_chosen and score_rejected; add them, or set it to 0"
        )


def sample_documents(store: SegmentStore) -> list[list[int]]:
    """The first documents, prompt with response, of which a saved model must compute what the run's does."""
    documents: list[list[int]] = []
    prompt: list[int] = []
    for number, ids in zip(
        store.segments[:LINES].tolist(), store.table["ids"].slice(0, LINES).to_pylist(), strict=True
    ):
        if number == 0:
            prompt = ids
        else:
            documents.append(prompt + ids)
    return documents


def optim_of(config: OptimConfig) -> OptimConfig:
    """The settings of optimisation alone, of a section that has others too."""
    return OptimConfig(**{f.name: getattr(config, f.name) for f in fields(OptimConfig)})


def draw(count: int, fraction: float, seed: int, sample: int = 0) -> np.ndarray:
    """`fraction` of the groups 0..count-1 (at least one), ascending; each (seed, sample) draws on its own."""
    if fraction == 1.0:
        return np.arange(count)
    return np.sort(permutation(count, seed=seed, epoch=sample)[: max(1, round(fraction * count))])


def check_reference(job: Job, stored: Path) -> None:
    """Compare the log-probs of the policy that starts with the stored ones of its reference; they differ by rounding.

    Raises:
        ArtifactError: they are not, so the stored log-probs belong to other weights.
    """
    device = init_distributed()
    model = job.model.to(device)
    batch = next((one for one in job.train.step(0) if one.target_ids.numel()), None)
    total = torch.zeros(2, dtype=torch.float64, device=device)  # of differences, and tokens: ranks decide the same
    if batch is not None:
        batch = batch.to(device)
        assert batch.ref_logps is not None  # noqa: S101  (the loader was given them)
        off = (score_logps(model, batch) - batch.ref_logps).double().abs() * batch.token_mask
        total = torch.stack([off.sum(), total.new_tensor(len(off))])
    off_all, count = ranks.all_sum(total).tolist()
    if count == 0:  # no row of the step has a token with a weight
        return
    mean = off_all / count
    logger.info("%s: step 0 is %.1e nats a token from the reference", job.stage, mean)
    if not mean <= REFERENCE_TOLERANCE[job.run.dtype]:
        raise ArtifactError(
            f"{job.stage}: log-probs at step 0 must be the reference's, but differ by {mean:.3g} nats a token; "
            f"delete {stored} and run again"
        )


def _count_weightless(job: Job) -> dict[str, Any]:
    """How many training rows have no token with a weight, where there are any; warns of them.

    Raises:
        DataError: all of them, so that no step would change the model.
    """
    loader = job.train
    assert isinstance(loader, StepLoader)  # noqa: S101  (made above)
    count, rows = int(loader.packer.weightless(loader.subset).sum()), loader.num_groups
    if count == 0:
        return {}
    if count == rows:
        first = ", ".join(map(str, loader.packer.store.rows[loader.subset][:3])) + ", …" * (rows > 3)
        raise DataError(
            f"{job.stage}: none of the {counted(rows, 'training row')} ({first}) has a token with a weight, so nothing "
            "can be learned: the data's columns of weights are 0 on all that is left of the responses; give the tokens "
            "that are to be learned a weight > 0 there, or leave these columns out"
        )
    logger.warning(
        "%s: %d of %d rows %s no token with a weight: nothing is computed for such a row, and it changes no weight of "
        "the model; the mean loss counts it", job.stage, count, rows, agreeing(count, "have"),
    )  # fmt: skip
    return {"weightless": count}


def warn_of_few_steps(job: Job) -> None:
    """Warn where the training is so short that little is learned, whatever the learning rate."""
    assert isinstance(job.train, StepLoader)  # noqa: S101  (made above)
    steps = total_steps(job.optim, job.train.steps_per_epoch)
    if steps < FEW_STEPS and not job.run.check and ranks.is_main():
        where = "" if job.stage == "policy" else f"{job.stage}."
        logger.warning(
            "%s: trains for %s only (%s of global_batch_size %d); lower %sglobal_batch_size, or raise %s",
            job.stage, counted(steps, "optimizer step"), counted(job.train.num_groups, "row"),
            job.optim.global_batch_size, where,
            f"{where}max_steps" if job.optim.max_steps > 0 else f"{where}num_train_epochs",
        )  # fmt: skip


def warn_of_still_loss(job: Job, facts: Mapping[str, Any]) -> None:
    """Warn where the loss is after the training what it was before: of the test rows, or without these in training."""
    before, after = (facts[f"eval_{when}"].get("eval_loss") for when in ("before", "after"))
    if before is None or after is None:
        before, after = facts["train_loss"] or (None, None)
    if before is None or job.run.check or facts["steps"] < 2:
        return
    if abs(after - before) <= STILL * abs(before):
        where = "" if job.stage == "policy" else f"{job.stage}."
        logger.warning(
            "%s: the loss did not move in %d steps (%.4f before, %.4f after): hardly anything was learned; raise "
            "%slearning_rate (%g) or %snum_train_epochs",
            job.stage, facts["steps"], before, after, where, job.optim.learning_rate, where,
        )  # fmt: skip


def write_margins(result: FitResult, path: Path) -> None:
    """Write what each test pair got in the end: `split`, `row`, `reward_margin`, `ranking_margin` (nats a token)."""
    import polars as pl

    frames = [
        pl.DataFrame({"row": found.rows, "reward_margin": found.reward, "ranking_margin": found.ranking})
        .select(pl.lit(split).alias("split"), pl.col("row").cast(pl.UInt64), pl.exclude("row"))
        .fill_nan(None)
        for split, found in result.margins.items()
    ]
    if frames:
        atomic_write(path, pl.concat(frames).write_parquet)


def convergence_facts(job: Job, result: FitResult) -> dict[str, Any]:
    """Whether the training came below `until_converged`, where that is set; else nothing."""
    below, window = job.optim.until_converged, job.optim.convergence_window
    if below is None:
        return {}
    if not result.converged:
        limit = "num_train_epochs" if job.optim.max_steps == -1 else "max_steps"
        remedy = f"raise {limit}" + (" or learning_rate" if result.steps >= window else ", or lower convergence_window")
        logger.warning(
            "%s: not converged after %d steps: the mean loss of the last %d is %.4g, until_converged is %.4g over "
            "convergence_window %d; %s", job.stage, result.steps, min(window, result.steps), result.moving_loss, below,
            window, remedy,
        )  # fmt: skip
    return {"converged": result.converged, "moving_loss": result.moving_loss}


def training_facts(result: FitResult, metrics: Path, stage: str) -> dict[str, Any]:
    """What the final table shows of a training."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    losses = [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]
    return {
        "steps": result.steps,
        "train_loss": [losses[0], losses[-1]] if losses else None,
        "eval_before": result.eval_before,
        "eval_after": result.eval_after,
    }
