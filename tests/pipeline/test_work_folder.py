"""Commands that train nothing keep out of the folders of runs, models and prepared data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyprefopt.cli.main import main
from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.pipeline.work_folder import check_own_folder

MODEL = {"model_type": "llama"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a training run leaves, as far as folders go."""
    for name in ("policy", "stages/data", "eval"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "run" / "config.yaml").write_text("method: dpo\n")
    (tmp_path / "run" / "policy" / "config.json").write_text(json.dumps(MODEL))
    return tmp_path / "run"


@pytest.mark.parametrize("inside", [".", "policy", "policy/eval", "stages/data", "stages/data/deep"])
def test_folders_of_runs_are_refused(run: Path, inside: str) -> None:
    with pytest.raises(ArtifactError, match=r"out must not be the folder of a (run|model)"):
        check_own_folder(run / inside, "out")


def test_folders_beside_are_fine(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "policy").mkdir(parents=True)  # a name alone makes no run
    check_own_folder(tmp_path / "mine", "out")
    check_own_folder(tmp_path / "mine" / "policy" / "eval", "out")
    check_own_folder(run / "eval", "out")
    check_own_folder(tmp_path / "new", "out")
    with pytest.raises(ConfigError, match="out must be a folder, got ''"):
        check_own_folder("", "out")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="a model or of prepared data"):
        check_own_folder(tmp_path / "model", "out")


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "accuracy", "p.jsonl", "--policy", "m.json", "--ref", "m.json", "--out", "RUN"],
        ["evaluate", "kl", "p.jsonl", "--policy", "m.json", "--ref", "m.json", "--out", "RUN"],
        ["evaluate", "rewardbench", "b.jsonl", "--reward_model", "m.json", "--out", "RUN"],
        ["evaluate", "rewardbench", "b.jsonl", "--reward_model", "m.json", "--out", "o", "--output_dir", "RUN"],
        ["rank", "p.jsonl", "--reward_model", "m.json", "--out", "o.jsonl", "--output_dir", "RUN"],
        ["generate", "p.jsonl", "--policy", "m.json", "--out", "o.parquet", "--output_dir", "RUN"],
        ["pairs", "p.jsonl", "--model", "m.json", "--reward_model", "embedded:rule", "--out", "o.jsonl",
         "--output_dir", "RUN"],
        ["study", "decoding", "p.jsonl", "--policy", "m.json", "--ref", "m.json", "--reward_model", "embedded:rule",
         "--output_dir", "RUN"],
        ["score", "p.jsonl", "--model", "m.json", "--tokenizer", "embedded:toy", "--rewards", "column",
         "--rewards.column", "x", "--out", "o.parquet", "--output_dir", "RUN"],
    ],
)  # fmt: skip
def test_every_command_keeps_out_of_a_run(
    words: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.json").write_text(json.dumps(MODEL))
    pair = {"prompt": "cat", "chosen": "meow", "rejected": "woof", "chosen_x": [1.0], "rejected_x": [1.0]}
    Path("p.jsonl").write_text(json.dumps(pair) + "\n")
    Path("b.jsonl").write_text(json.dumps({**pair, "id": 1, "subset": "hep-go"}) + "\n")
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    assert "must not be the folder of a run" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == "method: dpo\n"
