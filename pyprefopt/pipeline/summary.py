"""The end of a run: `summary.json`, and the same as a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.errors import counted, option
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import atomic_write
from pyprefopt.storage.hub import EMBEDDED_DATA, EMBEDDED_MODEL, is_embedded

TRAINED = ("base", "oracle", "policy")
SHOWN = ("loss", "ranking_accuracy", "rewards/accuracies", "rewards/margins")  # of the evaluations, in this order
SPLITS = (("train", "training"), ("eval", "test"), ("eval_cut", "cut test"))
GIB = 2**30
EMBEDDED = f"the embedded run: a tiny model of random weights ({EMBEDDED_MODEL}) on a toy set ({EMBEDDED_DATA})"

logger = logging.getLogger("pyprefopt")


def log_embedded(config: RunConfig) -> None:
    """Say before anything else that the model and the data are those that ship with the package, where they are."""
    if is_embedded(config.model, config.data) and ranks.is_main():
        logger.info("%s; give %s and %s to train on your own", EMBEDDED, option("model"), option("data"))


def summarize(config: RunConfig, made: dict[str, Artifact]) -> dict[str, Any]:
    """The facts of every stage that the run asked for, and the headline numbers of the policy."""
    stages = {name: {"reused": artifact.reused, **artifact.facts} for name, artifact in made.items()}
    policy = stages["policy"]
    return {
        "method": config.method,
        "output_dir": config.output_dir,
        "embedded": is_embedded(config.model, config.data),
        "ranking_accuracy": {when: policy[f"eval_{when}"].get("eval_ranking_accuracy") for when in ("before", "after")},
        "stages": stages,
    }


def write_summary(output_dir: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` whole or not at all."""
    atomic_write(output_dir / "summary.json", json.dumps(summary, indent=2).encode())


def format_table(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    stages = summary["stages"]
    what = "candidate sets" if METHODS[summary["method"]].trains_on == "candidates" else "pairs"
    pairs = [f"{stages['data'][split]['rows']:,} {name} {what}" for split, name in SPLITS if split in stages["data"]]
    parts = [f"{summary['method']}: finished, {summary['output_dir']}; {', '.join(pairs)}"]
    parts += [EMBEDDED] if summary["embedded"] else []
    parts.append(_stage_table(stages))
    parts += [_training_table(name, stages[name]) for name in TRAINED if name in stages]
    if "selection" in stages or "rewards" in stages:
        parts.append(_token_table(stages.get("selection", {}), stages.get("scores"), stages.get("rewards")))
    return "\n\n".join(parts)


def _stage_table(stages: dict[str, Any]) -> str:
    rows = [
        (
            name,
            "reused" if facts["reused"] else "made",
            f"{facts['seconds']:.1f}",
            f"{facts['peak_memory_bytes'] / GIB:.2f}",
        )
        for name, facts in stages.items()
    ]
    return align([("stage", "", "seconds", "peak memory (GiB)"), *rows])


def _training_table(name: str, facts: dict[str, Any]) -> str:
    ended = {True: ", converged", False: ", not converged", None: ""}[facts.get("converged")]
    rows = [(f"{name}, {counted(facts['steps'], 'step')}{ended}", "before", "after")]
    if facts.get("train_loss") is not None:
        first, last = facts["train_loss"]
        rows.append(("loss of the first and last step", _number(first), _number(last)))
    if "weightless" in facts:
        rows.append(("rows without a weighted token", f"{facts['weightless']:,}", ""))
    for metric in (f"{split}_{metric}" for split, _ in SPLITS[1:] for metric in SHOWN):
        before, after = (facts[f"eval_{when}"].get(metric) for when in ("before", "after"))
        if after is not None:
            rows.append((metric, _number(before), _number(after)))
    return align(rows)


def _token_table(selection: dict[str, Any], scores: dict[str, Any] | None, rewards: dict[str, Any] | None) -> str:
    sides = ("chosen", "rejected")
    title = "oracle's selection" if scores else "selection by token rewards" if rewards else "random selection"
    rows: list[tuple[str, ...]] = [(title if selection else "token rewards", *sides)]
    health = scores or rewards or {}
    if "mean_score" in health.get("chosen", {}):
        rows.append(("mean oracle score of a token", *(f"{health[side]['mean_score']:+.3f}" for side in sides)))
    if rewards:
        rows.append(("mean reward of a token", *(f"{rewards[side]['mean_reward']:+.3f}" for side in sides)))
    for fact, title in (
        ("selected_share", "share of tokens selected"),
        ("planted_recall", "planted tokens found (recall)"),
        ("planted_recall_by_chance", "  by chance"),
        ("planted_precision", "selected tokens planted (precision)"),
        ("planted_precision_by_chance", "  by chance"),
    ):
        if fact in selection.get("chosen", {}):
            rows.append((title, *(_number(selection[side][fact]) for side in sides)))
    return align(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def align(rows: Iterable[tuple[str, ...]]) -> str:
    """The rows as columns: the first is the head, texts of the first column stand left."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if column == 0 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:]])
