"""Stages on disk: made once, reused under the same key, made again under another, never half a stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyprefopt.losses import DPO, IPO
from pyprefopt.settings.config import LoraConfig
from pyprefopt.stages.models import Source
from pyprefopt.stages.stage import Artifact, run_stage
from tests.stages.made import RUNTIME, Made


def test_made_once_then_reused(tmp_path: Path) -> None:
    stage = Made(reads_this={"a": 1})
    first = run_stage(stage, tmp_path / "stage", RUNTIME)
    second = run_stage(stage, tmp_path / "stage", RUNTIME)
    assert (first.reused, second.reused, len(stage.calls)) == (False, True, 1)
    assert second.facts["answer"] == 42
    assert second.facts["peak_memory_bytes"] > 0
    assert second.fingerprint == "abc"
    assert second.reads == {"name": "name", "reads_this": {"a": 1}}


@pytest.mark.parametrize("other", [{"a": 2, "x": "1"}, {"a": 1, "x": "2"}, {"a": 1}, {"a": 1, "y": "1"}])
def test_another_key_starts_from_an_empty_folder(tmp_path: Path, other: dict[str, Any]) -> None:
    stage = Made(reads_this={"a": 1, "x": "1"})
    run_stage(stage, tmp_path, RUNTIME)
    assert not run_stage(replace(stage, reads_this=other), tmp_path, RUNTIME).reused
    assert not (tmp_path / "file-1").exists()
    assert (tmp_path / "file-2").exists()


def test_a_failed_stage_keeps_its_folder_and_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(Made(fails=True), tmp_path, RUNTIME)
    assert (tmp_path / "file-1").exists()
    assert not (tmp_path / "manifest.json").exists()
    (tmp_path / "file-1").rename(tmp_path / "checkpoint")
    assert not run_stage(Made(), tmp_path, RUNTIME).reused
    assert (tmp_path / "checkpoint").exists()  # what the killed run left is there for the next


def test_a_missing_output_makes_the_stage_run_again(tmp_path: Path) -> None:
    output = tmp_path / "policy"
    stage = Made(output=output)
    output.mkdir()
    run_stage(stage, tmp_path / "stage", RUNTIME)
    assert run_stage(stage, tmp_path / "stage", RUNTIME).reused
    output.rmdir()
    assert not run_stage(stage, tmp_path / "stage", RUNTIME).reused
    assert len(stage.calls) == 2


def test_an_output_with_other_content_makes_the_stage_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is made from a model's weights is keyed by their hash, so others of the same size may not pass for them."""
    output = tmp_path / "policy"
    stage = Made(output=output)
    output.mkdir()
    (output / "weights").write_text("ones")
    run_stage(stage, tmp_path / "stage", RUNTIME)
    assert run_stage(stage, tmp_path / "stage", RUNTIME).reused
    (output / "weights").write_text("twos")
    assert not run_stage(stage, tmp_path / "stage", RUNTIME).reused
    assert f"name: {output} is not as it was written (sha256 differs): it is made again" in caplog.text


@pytest.mark.parametrize("name", ["reads", "facts", "files", "fingerprint"])
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"a": 1}])
def test_a_manifest_of_other_types_makes_the_stage_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: Any
) -> None:
    stage = Made()
    run_stage(stage, tmp_path, RUNTIME)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    allowed = {"fingerprint": str, "reads": dict, "facts": dict}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {name: value}))
    fits = isinstance(value, allowed.get(name, ()))
    assert run_stage(stage, tmp_path, RUNTIME).reused == fits
    assert ("manifest.json is not as it was written" in caplog.text) != fits


def test_key_does_not_depend_on_the_order_of_settings() -> None:
    assert Made(reads_this={"a": 1, "b": 2}).key == Made(reads_this={"b": 2, "a": 1}).key
    assert Made(reads_this={"a": 1}).key != Made(reads_this={"a": 1.5}).key


def test_a_key_holds_content_and_no_place(tmp_path: Path) -> None:
    """Artifacts and models by their fingerprint, settings by their values, a method by its name in METHODS."""
    here, there = (Artifact("data", tmp_path / place, {"key": "k", "fingerprint": "f"}, reused=False) for place in "ab")
    first = Made(reads_this={"data": here, "model": Source("here", "f"), "method": DPO(), "lora": LoraConfig()})
    second = replace(
        first, reads_this={**first.reads_this, "data": there, "model": Source("there", "f")}, label="second"
    )
    assert first.key == second.key
    method = first.reads["reads_this"]["method"]
    assert (method["method"], method["beta"]) == ("dpo", DPO().beta)
    for other in (DPO(beta=0.7), IPO(beta=DPO().beta)):
        assert replace(first, reads_this={**first.reads_this, "method": other}).key != first.key
