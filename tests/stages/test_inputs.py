"""Runs on real preference data, in every format, and on every tested architecture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import pyprefopt
from tests.modeling.models import ARCHITECTURES
from tests.stages.runs import FAST, MODEL, losses, small, write_inputs

SHARED = Path(os.environ.get("PYPREFOPT_SHARED", Path(__file__).parents[3] / "shared")) / "data"
NEOX = SHARED / "tokenizers" / "gpt-neox-20b.json"

# file -> (rows, rows that cannot be used with prompts of at most 1,024 tokens)
REAL = {
    "alpaca-pairs-test.parquet": (1540, 0),
    "hh-rlhf-harmless.jsonl.gz": (1500, 5),
    "sharegpt-dpo-en.json.gz": (300, 41),
}


@pytest.mark.skipif(not NEOX.exists(), reason=f"real preference data is not at {SHARED}; set PYPREFOPT_SHARED")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_and_trained_on(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"vocab_size": 50432, "max_position_embeddings": 2048}))
    config = pyprefopt.configure(
        method="simpo", data=str(SHARED / name), model=str(tmp_path / "config.json"), tokenizer=str(NEOX),
        eos_token="<|endoftext|>", chat_template="plain", on_error="skip", output_dir=str(tmp_path / "run"), check=True,
        threads=1, **FAST | {"global_batch_size": 2},
    )  # fmt: skip
    pyprefopt.train(config)
    rows, bad = REAL[name]
    assert f"check passed: {rows} rows read, {rows - bad} used, {bad} rejected" in capsys.readouterr().out
    rejected = tmp_path / "run" / "rejected.jsonl"
    assert (len(rejected.read_text().splitlines()) if bad else not rejected.exists()) == (bad or True)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gpt_neox_sequential"}))
def test_every_architecture_trains(architecture: str, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURES[architecture] | {"vocab_size": 512}))
    result = pyprefopt.train(
        small(tmp_path, tmp_path / "run", method="dpo", base={}, oracle={}, policy_init=None, loss={"beta": 0.5},
              num_train_epochs=5.0)
    )  # fmt: skip
    policy = result.summary["stages"]["policy"]
    assert policy["eval_before"]["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    values = [loss for _, _, loss in losses(tmp_path / "run")]
    assert len(values) == 20
    assert sum(values[-4:]) < sum(values[:4])
