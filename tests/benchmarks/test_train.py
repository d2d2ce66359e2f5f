"""The benchmark of training runs, checks what it compares, and writes its page."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pairs, sets, train, training_report
from benchmarks.pairs import Lengths, Shape
from benchmarks.train import together
from benchmarks.trainers import selection
from pyprefopt.data.store.segments import SegmentStore

ROOT = Path(__file__).parents[2]
SMALL, SHORT = Shape(300, 64, 2), Lengths((4, 8), (5, 40))


def quick(folder: Path, *options: str) -> dict:
    out = folder / "out.json"
    command = [sys.executable, "benchmarks/train.py", "--quick", "--threads", "1", "--out", out, *options]
    environment = os.environ | {"PYPREFOPT_SHARED": str(sets.SHARED)}
    done = subprocess.run(map(str, command), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_a_quick_run_has_the_peers_losses(tmp_path):
    pytest.importorskip("trl", reason="the extra `bench` is not installed: trl")
    page = tmp_path / "page.md"
    found = quick(tmp_path, "--write", str(page))
    made = {"small", "heavy-bf16", "vocabulary", "response", "ratio"}
    assert {run["table"] for run in found["runs"]} == made | ({"text"} if sets.TOKENIZER.exists() else set())
    assert set(found["runs"][0]["sides"]) == {"trl 4", "trl 1", "separate", "shared", "sepo"}
    for run in found["runs"]:
        if "trl 4" in run["sides"]:
            assert training_report.equal(run), run
            assert min(run["sides"]["shared"]["losses"]) != max(run["sides"]["shared"]["losses"])
    assert "A quick run" in page.read_text()
    assert 'Left out: "A heavy backbone, float32"' in page.read_text()
    assert "losses agree" in page.read_text()
    assert not re.search(r"\dx \|", page.read_text())


def without_data(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/train.py", "--quick", *map(str, options)]
    environment = os.environ | {"PYPREFOPT_SHARED": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_text_asked_for_by_name_without_its_data_is_an_error_at_once(tmp_path):
    done = without_data(tmp_path, "--only", "small", "text")
    assert done.returncode == 2
    assert "--only text: it needs real data" in done.stderr
    assert "PYPREFOPT_SHARED" in done.stderr
    assert "small" not in done.stderr.partition("error:")[2]  # nothing was measured


def test_text_is_left_out_without_its_data(tmp_path, monkeypatch, capsys):
    """And the page says so."""
    monkeypatch.setattr(sets, "SHARED", tmp_path)
    monkeypatch.setattr(sets, "TOKENIZER", tmp_path / "data/tokenizers/gpt-neox-20b.json")
    monkeypatch.setattr(train, "run", lambda given, folder: iter([run_of(**PACES)] * ("text" not in given.only)))
    monkeypatch.setattr(train.os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["train.py", "--write", str(tmp_path / "page.md")])
    train.main()
    assert "'text' is left out: it needs real data" in capsys.readouterr().err
    page = (tmp_path / "page.md").read_text()
    assert 'Left out: "Real text", because it needs real data' in page
    assert str(tmp_path) not in page
    assert "| 6.00 | 6.00x |" in page


def test_a_page_of_earlier_results_measures_nothing_and_names_their_machine(tmp_path, monkeypatch):
    machine = {"date": "2020-02-02", "cpu": "a processor", "cores": 2, "python": "3.11", "versions": {}}
    (tmp_path / "a.json").write_text(json.dumps({"machine": machine, "runs": [run_of(**PACES)]}))
    monkeypatch.setattr(train.os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(train, "worker", None)
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["train.py", "--only", "--add", str(tmp_path / "a.json"), "--write", str(page)])
    train.main()
    assert "on 2020-02-02: a processor" in page.read_text()
    assert "Left out" not in page.read_text()


def test_our_side_of_a_quick_run(tmp_path):
    found = quick(tmp_path, "--only", "ratio", "--clock", "cpu")
    (run,) = found["runs"]
    side = run["sides"]["sepo"]
    assert side["peak_bytes"] >= side["before_bytes"] > 0
    assert len(side["losses"]) == 2
    assert side["pairs_per_second"] > 0


def test_sets_are_seeded_and_within_their_bounds(tmp_path):
    one, two = (pairs.synthetic(30, SMALL, SHORT, seed=3) for _ in range(2))
    assert all(np.array_equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    for lists, (low, high) in zip(one, [SHORT.prompt, SHORT.response, SHORT.response], strict=True):
        assert all(low <= len(ids) <= high for ids in lists)
        assert all(ids.min() > 0 and ids.max() < SMALL.vocabulary for ids in lists)
    folder = pairs.write(tmp_path / "set", one, SMALL)
    store = SegmentStore.open(folder / "segments")
    assert store.num_rows == 30
    expected = [ids.tolist() for row in range(30) for ids in (lists[row] for lists in one)]
    assert store.table["ids"].to_pylist() == expected
    facts = pairs.facts(folder)
    assert facts["tokens"] == sum(2 * len(p) + len(c) + len(r) for p, c, r in zip(*one, strict=True))
    selected = selection(store, 0.3)
    counts = np.add.reduceat(selected, store.response_offsets[:-1][store.segments != 0])
    assert counts.tolist() == [int(0.3 * n + 0.5) for n in store.lengths[store.segments != 0]]


def run_of(**paces: float) -> dict:
    side = {"losses": [0.69, 0.68], "peak_bytes": 2_000_000, "before_bytes": 1_000_000, "scoring_peak_bytes": 1_000_000}
    sides = {name: side | {"pairs_per_second": pace} for name, pace in paces.items()}
    for name, one in sides.items():
        if name != "sepo":
            one["scoring_seconds"] = 2.0 if name.startswith("trl") else 0.5
    about = {"steps": 2, "batch": 4, "repetitions": 1, "threads": 1, "clock": "wall", "max_tokens": 99, "quick": False}
    means = {f"mean_{name}": 10.0 for name in ("prompt", "chosen", "rejected")}
    return {
        "table": "small", "sides": sides, "measured": about, "tokens": 100, "vocabulary": 5, "hidden": 4, "layers": 1,
        **means,
    }  # fmt: skip


PACES = {"trl 4": 1.0, "trl 1": 2.0, "separate": 5.0, "shared": 6.0, "sepo": 12.0}


def test_ratios_are_those_of_the_paces():
    text = training_report.tables([run_of(**PACES)])
    assert "| 6.00 | 6.00x | 6x | 3.00x | 2 MB (1.00) |" in text
    assert "takes 0.50 of the time of a DPO step (wanted: below 0.6; reached); its matrix products alone are" in text
    assert "steps of 4 pairs, ours in micro-batches of at most 99 tokens, the fastest of 1" in text
    assert "| 200 | 4.00x | 3x |" in text


def test_the_matrix_products_of_selection():
    """hidden 64 and one layer: an inner width of 192; 20 tokens of three go through the head."""
    run = run_of(**PACES) | {"hidden": 64, "vocabulary": 500}
    backbone, head = 3 * (4 * 64**2 + 3 * 64 * 192) * 30, 4 * 500 * 64 * 20
    assert training_report.products(run) == pytest.approx((backbone + 0.3 * head) / (backbone + head))


def test_a_table_by_one_property_names_what_its_runs_share():
    one = {"losses": [0.69], "peak_bytes": 2, "before_bytes": 1, "parameters": 0, "pairs_per_second": 1.0}
    runs = [
        run_of() | {"table": "vocabulary", "sides": {"shared": one}, "value": size, "vocabulary": size}
        for size in (7, 9)
    ]
    assert (
        "Llama, hidden 4, 1 layers; mean tokens of prompt, chosen, rejected 10 / 10 / 10. 2"
        in training_report.tables(runs)
    )
    for number, run in enumerate(runs):
        run |= {"table": "response", "vocabulary": 5, "mean_chosen": number, "mean_rejected": number}
    assert "Llama, vocabulary 5, hidden 4, 1 layers; mean tokens of prompt 10. 2" in training_report.tables(runs)


def test_no_ratio_where_a_loss_differs():
    run = copy.deepcopy(run_of(**PACES))
    run["sides"]["shared"]["losses"] = [0.69, 0.68 * (1 + 2e-4)]
    assert not training_report.equal(run)
    text = training_report.tables([run])
    assert "losses differ" in text
    assert "x |" not in text.replace("5.3x |", "").replace("6x |", "").replace("9.1x |", "").replace("3x |", "")
    run["table"] = "heavy-bf16"
    assert training_report.equal(run)


def test_the_fastest_run_of_each_step_counts_and_the_first_step_does_not():
    both = {"peak_bytes": 1, "before_bytes": 1, "parameters": 1, "losses": [0.7, 0.6, 0.5]}
    runs = [both | {"wall": [9.0, 1.0, 4.0], "cpu": [0, 0, 0]}, both | {"wall": [1.0, 3.0, 2.0], "cpu": [0, 0, 0]}]
    assert together(runs, "wall", 6)["pairs_per_second"] == pytest.approx(2 * 6 / (1.0 + 2.0))
