"""`--check`: read and check all data, take one step of every stage on a little of it, estimate memory."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyprefopt import ranks
from pyprefopt.modeling.memory import estimate_memory
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.models import open_trained

if TYPE_CHECKING:
    from pyprefopt.pipeline.pipeline import Pipeline

GIB = 2**30

logger = logging.getLogger("pyprefopt")


def one_step(config: RunConfig) -> RunConfig:
    """The same run with one optimizer step a stage, in a folder of its own."""
    return replace(
        config,
        max_steps=1,
        base=replace(config.base, max_steps=1),
        oracle=replace(config.oracle, max_steps=1),
        output_dir=str(Path(config.output_dir) / "check"),
        cache=None,
    )


def report(pipeline: Pipeline) -> str:
    """What the check saw, and the memory that training will take."""
    config, data = pipeline.config, pipeline.data
    facts = data.facts
    model = open_trained(config, pipeline.start.to_train(config), data, config.loss.needs)
    estimate = estimate_memory(
        model, tokens=config.max_tokens_per_batch, gradient_checkpointing=config.gradient_checkpointing
    )
    parts = ", ".join(
        f"{name} {getattr(estimate, name) / GIB:.2g}"
        for name in ("parameters", "gradients", "optimizer", "activations")
    )
    return "\n".join(
        [
            f"check passed: {facts['rows_in']} rows read, {facts['rows_used']} used, "
            f"{facts['rows_rejected']} rejected, {facts['responses_cut']} responses cut to max_tokens",
            f"one optimizer step of each stage ran: {', '.join(pipeline.made)}",
            f"memory of one rank without ZeRO, estimated for {config.max_tokens_per_batch} tokens a micro-batch: "
            f"{estimate.total / GIB:.2f} GiB ({parts})",
        ]
    )


def clean_up(output_dir: Path) -> None:
    """Remove what the check made, but keep the list of bad rows."""
    if not ranks.is_main():
        return
    folder = output_dir / "check"
    if (folder / "rejected.jsonl").exists():
        shutil.move(folder / "rejected.jsonl", output_dir / "rejected.jsonl")
    shutil.rmtree(folder, ignore_errors=True)
