"""Stages on disk: made once, reused under the same key, made again under another, never half a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyprefopt.stages.stage import Stage, run_stage


class Maker:
    """A build function that counts its calls and can fail half way."""

    def __init__(self, fail: bool = False) -> None:
        self.calls, self.fail = 0, fail

    def __call__(self, directory: Path) -> dict[str, Any]:
        self.calls += 1
        (directory / f"file-{self.calls}").write_text("content")
        if self.fail:
            raise RuntimeError("killed")
        return {"facts": {"answer": 42}, "fingerprint": "abc"}


def test_made_once_then_reused(tmp_path: Path) -> None:
    make, stage = Maker(), Stage("name", {"a": 1})
    first = run_stage(stage, tmp_path / "stage", make)
    second = run_stage(stage, tmp_path / "stage", make)
    assert (first.reused, second.reused, make.calls) == (False, True, 1)
    assert second.facts["answer"] == 42
    assert second.facts["peak_memory_bytes"] > 0
    assert second.fingerprint == "abc"


@pytest.mark.parametrize(
    "other",
    [
        Stage("name", {"a": 2}, {"x": "1"}, 0),
        Stage("name", {"a": 1}, {"x": "2"}, 0),
        Stage("name", {"a": 1}, {"x": "1"}, 1),
        Stage("name", {"a": 1}, {"y": "1"}, 0),
    ],
)
def test_another_key_starts_from_an_empty_folder(tmp_path: Path, other: Stage) -> None:
    make = Maker()
    run_stage(Stage("name", {"a": 1}, {"x": "1"}, 0), tmp_path, make)
    assert not run_stage(other, tmp_path, make).reused
    assert not (tmp_path / "file-1").exists()
    assert (tmp_path / "file-2").exists()


def test_a_failed_stage_keeps_its_folder_and_is_not_finished(tmp_path: Path) -> None:
    stage = Stage("name", {})
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(stage, tmp_path, Maker(fail=True))
    assert (tmp_path / "file-1").exists()
    assert not (tmp_path / "manifest.json").exists()
    assert not run_stage(stage, tmp_path, Maker()).reused
    assert (tmp_path / "file-1").exists()  # what the killed run left (checkpoints) is there for the next


def test_a_missing_output_makes_the_stage_run_again(tmp_path: Path) -> None:
    output, make, stage = tmp_path / "policy", Maker(), Stage("name", {})
    output.mkdir()
    run_stage(stage, tmp_path / "stage", make, outputs=[output])
    assert run_stage(stage, tmp_path / "stage", make, outputs=[output]).reused
    output.rmdir()
    assert not run_stage(stage, tmp_path / "stage", make, outputs=[output]).reused
    assert make.calls == 2


def test_an_output_with_other_content_makes_the_stage_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is made from a model's weights is keyed by their hash, so others of the same size may not pass for them."""
    output, make, stage = tmp_path / "policy", Maker(), Stage("name", {})
    output.mkdir()
    (output / "weights").write_text("ones")
    run_stage(stage, tmp_path / "stage", make, outputs=[output])
    assert run_stage(stage, tmp_path / "stage", make, outputs=[output]).reused
    (output / "weights").write_text("twos")
    assert not run_stage(stage, tmp_path / "stage", make, outputs=[output]).reused
    assert f"name: {output} is not as it was written (sha256 differs): it is made again" in caplog.text


def test_key_does_not_depend_on_the_order_of_settings() -> None:
    assert Stage("n", {"a": 1, "b": 2}).key == Stage("n", {"b": 2, "a": 1}).key
    assert Stage("n", {"a": 1}).key != Stage("n", {"a": 1.5}).key
