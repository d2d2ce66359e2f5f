"""The tables of docs/settings.md say what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pyprefopt.settings.resolve import configure

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
OURS = {"beta": "loss.beta", "label_smoothing": "loss.label_smoothing", "max_length": "max_tokens"}  # of TRL's names


def table(title: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    below = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def as_said(text: str) -> Any:
    """The value that a cell begins with."""
    word = re.split(r"[ :,]", text)[0]
    return {"true": True, "false": False}.get(word, float(word) if re.fullmatch(r"[\d.e-]+", word) else word)


def ours(method: str, name: str) -> Any:
    """A default of ours, by its dotted name."""
    value: Any = configure(method=method, model="m", data="d")
    for part in OURS.get(name, name).split("."):
        value = getattr(value, part)
    return value


def test_defaults_beside_trls() -> None:
    trl = pytest.importorskip("trl")
    theirs = {f.name: f.default for f in fields(trl.DPOConfig)}
    rows = {row[0]: row[1:] for row in table("TRL's defaults and ours")}
    same = [name.strip("`") for name in rows if re.fullmatch(r"`\w+`", name)] + list(OURS)
    assert {"learning_rate", "num_train_epochs", "lr_scheduler_type", "seed", "beta", "max_length"} <= {*same}
    for name in same:
        row = next(cells for title, cells in rows.items() if title.startswith(f"`{name}`"))
        assert as_said(row[0]) == theirs[name], name
        assert as_said(row[1]) == ours("dpo", name), name
        for method, said in re.findall(r"`(sft|reward)` ([\d.e-]+)", row[1]):
            assert float(said) == ours(method, name), name
    for config, said in re.findall(r"`(SFTConfig|RewardConfig)` ([\d.e-]+)", rows["`learning_rate`"][0]):
        assert float(said) == {f.name: f.default for f in fields(getattr(trl, config))}["learning_rate"]
    for title, (trls, own) in rows.items():
        if "`, `" in title:  # several settings, in order
            names = re.findall(r"`(\w+)`", title)
            for said, value in ((trls, theirs.get), (own, lambda name: ours("dpo", name))):
                for word, name in zip(said.split(", "), names, strict=True):
                    assert (None if word == "all" else float(word)) == value(name), name
    assert (theirs["per_device_train_batch_size"], theirs["gradient_accumulation_steps"]) == (8, 1)
    assert (theirs["warmup_steps"], theirs["disable_dropout"], theirs["eval_strategy"]) == (0, True, "no")
    assert trl.DPOConfig(output_dir="o", use_cpu=True, report_to="none").bf16 is True
    assert (ours("dpo", "global_batch_size"), ours("dpo", "warmup_ratio")) == (128, 0.03)
    assert (ours("dpo", "max_prompt_tokens"), ours("dpo", "dtype"), ours("dpo", "eval_ratio")) == (
        1024,
        "float32",
        0.05,
    )
