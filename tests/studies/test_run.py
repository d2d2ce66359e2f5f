"""Studies: grids of runs that share their stages, and the tables over them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pyprefopt
from pyprefopt import cli
from pyprefopt.cli.study import read
from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure, with_settings
from pyprefopt.settings.typed import as_dict, dotted_names, dump_yaml
from pyprefopt.stages.logps import Logps
from pyprefopt.stages.training import Training, draw
from pyprefopt.studies.catalog import STUDIES
from pyprefopt.studies.run import StudyResult, format_summary, run_study
from pyprefopt.studies.tables import METRICS, T95, interval, summarize_cells
from tests.pipeline.runs import digest, small

ROOT = Path(__file__).parent.parent.parent
RATIOS = {"chosen_ratios": [0.3, 0.6], "rejected_ratios": [0.3]}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The command line gives the logger a handler on this test's captured stderr."""
    logger = logging.getLogger("pyprefopt")
    before = list(logger.handlers), logger.level
    yield
    logger.handlers, logger.level = before


def digest_of(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def stage_counts(root: Path) -> dict[str, int]:
    names = [path.name.rpartition("-")[0] for path in (root / "stages").iterdir()]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.fixture(scope="module")
def ratios(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Not to be changed: copy its folder first."""
    return run_study("ratios", small(inputs, tmp_path_factory.mktemp("ratios")), values=RATIOS)


def test_cells_are_a_tidy_table(ratios):
    cells = ratios.cells
    assert cells["chosen_ratio"].to_list() == [0.3, 0.6]
    assert cells["rejected_ratio"].to_list() == [0.3, 0.3]
    assert set(METRICS) < set(cells.columns)
    assert cells["selected_chosen"].to_list() == pytest.approx([0.3, 0.6], abs=0.03)
    assert cells["selected_rejected"].to_list() == pytest.approx([0.3, 0.3], abs=0.03)
    assert cells["ranking_accuracy"].is_between(0, 1).all()
    assert cells["ranking_accuracy_before"].n_unique() == 1
    for table in ("cells", "summary", "curves", "scores"):
        written = pl.read_csv(ratios.output_dir / f"{table}.csv")
        assert written.columns == getattr(ratios, table).columns
        assert written.height == getattr(ratios, table).height


def test_runs_share_what_does_not_depend_on_the_point(ratios):
    counts = stage_counts(ratios.output_dir)
    assert counts == {"base": 1, "data": 1, "logps": 2, "oracle": 1, "policy": 2, "scores": 1, "selection": 2}


def test_a_point_is_the_run_that_train_makes(ratios, inputs, tmp_path):
    ratio = {"chosen_ratio": 0.6, "rejected_ratio": 0.3}
    alone = pyprefopt.train(small(inputs, tmp_path, selection=ratio))
    point = ratios.cells.row(1, named=True)
    assert digest_of(Path(point["policy"])) == digest(tmp_path)
    assert point["ranking_accuracy"] == alone.summary["ranking_accuracy"]["after"]
    assert point["reward_margin"] == alone.summary["stages"]["policy"]["eval_after"]["eval_rewards/margins"]


def test_curves_are_the_policys_losses(ratios):
    steps = int(ratios.cells["steps"][0])
    assert ratios.curves.height == 2 * steps
    assert ratios.curves.filter(pl.col("chosen_ratio") == 0.6)["step"].to_list() == list(range(1, steps + 1))


def test_scores_are_densities(ratios):
    shares = ratios.scores.with_columns(share=pl.col("density") * (pl.col("right") - pl.col("left")))
    sums = shares.group_by("chosen_ratio", "side").agg(pl.col("share").sum())["share"].to_list()
    assert len(sums) == 4
    assert all(0.98 < total <= 1 + 1e-9 for total in sums)


def test_figures_are_written(ratios):
    assert (ratios.output_dir / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_study_runs_nothing_again(ratios, inputs, monkeypatch):
    before = {path.name: path.read_bytes() for path in ratios.output_dir.glob("*.csv")}
    monkeypatch.setattr(Training, "build", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(Logps, "build", lambda *_: pytest.fail("scored again"))
    run_study("ratios", small(inputs, ratios.output_dir), values=RATIOS, plots=False)
    assert {path.name: path.read_bytes() for path in ratios.output_dir.glob("*.csv")} == before


def test_a_stopped_study_goes_on_with_the_missing_runs(ratios, inputs, tmp_path, monkeypatch):
    shutil.copytree(ratios.output_dir / "stages", tmp_path / "stages")
    last = Path(ratios.cells["policy"][1]).parent.name
    shutil.rmtree(tmp_path / "stages" / last)
    trained, build = [], Training.build

    def watch(training: Training, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        trained.append(directory.name)
        return build(training, directory, runtime)

    monkeypatch.setattr(Training, "build", watch)
    again = run_study("ratios", small(inputs, tmp_path), values=RATIOS, plots=False)
    assert trained == [last]
    drop = ["seconds", "policy"]
    assert again.cells.drop(drop).equals(ratios.cells.drop(drop))


def test_no_checkpoint_is_kept(ratios):
    assert not list(ratios.output_dir.rglob("checkpoints"))


def after(ratios: StudyResult, directory: Path) -> Path:
    """A study's folder in which the data, the base and its scores are already there."""
    shutil.copytree(ratios.output_dir / "stages", directory / "stages")
    return directory


def test_samples_of_the_oracles_data(ratios, inputs, tmp_path):
    values = {"fractions": [0.5], "samples": [0, 1]}
    result = run_study("oracle_data", small(inputs, after(ratios, tmp_path)), values=values)
    assert result.cells.select("fraction", "sample").rows() == [(0.5, 0), (0.5, 1)]
    assert result.cells["score_chosen"].n_unique() == 2  # another sample is another oracle
    counts = stage_counts(tmp_path)
    assert (counts["base"], counts["oracle"], counts["policy"]) == (1, 1 + 2, 2 + 2)
    means = result.summary.filter(pl.col("metric") == "reward_margin").row(0, named=True)
    assert means["n"] == 2
    margins = result.cells["reward_margin"].to_list()
    assert (means["mean"], means["low"], means["high"]) == pytest.approx(interval(margins))
    assert "±" in format_summary(result)
    assert (tmp_path / "oracle_data.png").stat().st_size > 1000


def test_an_oracle_of_another_size(ratios, inputs, tmp_path):
    """The policy starts from where it starts in any run; what scores its tokens is another model."""
    config = small(inputs, after(ratios, tmp_path), selection={"chosen_ratio": 0.3, "rejected_ratio": 0.3})
    result = run_study("oracle_size", config, values={"oracle_models": ["16"]})
    point = result.cells.row(0, named=True)
    assert point["ranking_accuracy_before"] == ratios.cells["ranking_accuracy_before"][0]
    assert point["score_chosen"] != ratios.cells["score_chosen"][0]
    vocabulary, width, layers = 420, 16, 2
    blocks = layers * (4 * width**2 + 3 * 2 * width**2 + 2 * width)  # attention, MLP, two norms
    assert point["oracle_parameters"] == 2 * vocabulary * width + blocks + width
    counts = stage_counts(tmp_path)
    assert (counts["base"], counts["oracle"], counts["policy"]) == (2, 2, 2 + 1)
    assert (tmp_path / "oracle_size.png").stat().st_size > 1000


def test_guidance_to_convergence(ratios, inputs, tmp_path):
    """TGDPO's study: every run ends where its own loss is low enough, at the latest after its epochs."""
    settings = {"method": "tgdpo", "until_converged": 0.6, "convergence_window": 2, "num_train_epochs": 3.0}
    config = small(inputs, after(ratios, tmp_path), **settings)
    result = run_study("alpha_tgdpo", config, values={"alphas": [0.0, 2.0]})
    assert result.cells["alpha"].to_list() == [0.0, 2.0]
    for point in result.cells.iter_rows(named=True):
        losses = result.curves.filter(pl.col("alpha") == point["alpha"])["loss"].to_list()
        assert len(losses) == point["steps"] <= 12
        assert point["moving_loss"] == pytest.approx(sum(losses[-2:]) / 2)
        assert point["converged"] == (point["moving_loss"] < 0.6)
    assert result.cells["converged"].any()
    assert stage_counts(tmp_path)["oracle"] == 1  # the token rewards are those of the oracle that was there
    assert result.scores.select("alpha", "side").unique().height == 4
    assert (tmp_path / "alpha_tgdpo.png").stat().st_size > 1000


def test_strength_of_the_regulariser(ratios, inputs, tmp_path):
    config = small(inputs, after(ratios, tmp_path), method="dpo-reg", rewards={"name": "dpo"})
    result = run_study("alpha_treg", config, values={"alphas": [0.0, 1000.0]})
    assert result.cells["alpha"].to_list() == [0.0, 1000.0]
    assert result.cells["reward_margin"].n_unique() == 2
    assert (tmp_path / "alpha_treg.png").stat().st_size > 1000


@pytest.mark.slow
def test_seeds_are_runs_of_their_own(inputs, tmp_path):
    values = {"chosen_ratios": [0.3], "rejected_ratios": [0.3]}
    result = run_study("ratios", small(inputs, tmp_path), values=values, seeds=[0, 1])
    assert result.cells["seed"].to_list() == [0, 1]
    assert result.cells["reward_margin"].n_unique() == 2
    assert result.summary["n"].to_list() == [2] * result.summary.height
    counts = stage_counts(tmp_path)
    assert (counts["base"], counts["oracle"], counts["policy"]) == (2, 2, 2)


@pytest.mark.slow
def test_two_ranks_make_the_same_tables(ratios, inputs, tmp_path):
    settings = as_dict(small(inputs, tmp_path / "two", threads=None))
    for varied in ("chosen_ratio", "rejected_ratio"):
        del settings["selection"][varied]
    del settings["seed"]
    (tmp_path / "run.yaml").write_text(dump_yaml(settings))
    words = [option for name, found in RATIOS.items() for option in (f"--{name}", *map(str, found))]
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", str(ROOT / "scripts" / "study.py")]
    done = subprocess.run(
        [*launcher, "ratios", "--config", str(tmp_path / "run.yaml"), *words, "--plots", "false"],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cells = pl.read_csv(tmp_path / "two" / "cells.csv")
    for column in ("ranking_accuracy", "reward_margin", "score_chosen", "moving_loss"):
        ours = [value for value in cells[column].to_list() if value is not None]
        assert ours == pytest.approx([v for v in ratios.cells[column].to_list() if v is not None], abs=1e-4)


def test_draw_gives_other_pairs_for_another_sample():
    first, second = (draw(100, 0.3, seed=0, sample=sample) for sample in (0, 1))
    assert len(first) == len(second) == 30
    assert set(first) != set(second)
    assert np.array_equal(draw(100, 1.0, seed=0, sample=1), np.arange(100))


def test_interval_by_hand():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    assert interval([5.0]) == (5.0, None, None)
    assert interval([0.25] * 4) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("df", [1, 2, 7, 30])
def test_t_table(df):
    """Half of Student's density lies between 0 and infinity, 0.475 of it below the entry."""
    scale = math.gamma((df + 1) / 2) / math.sqrt(df * math.pi) / math.gamma(df / 2)
    x = np.linspace(0, T95[df - 1], 200_001)
    assert np.trapezoid(scale * (1 + x**2 / df) ** (-(df + 1) / 2), x) == pytest.approx(0.475, abs=2e-5)


def test_a_metric_that_no_run_has_is_left_out():
    empty = dict.fromkeys(METRICS) | {"alpha": 0.5}
    cells = [empty | {"steps": 3, "converged": True}, empty | {"steps": 5, "converged": False}]
    rows = {row["metric"]: row for row in summarize_cells(cells, ["alpha"])}
    assert set(rows) == {"steps", "converged"}
    assert rows["converged"]["mean"] == 0.5
    assert rows["steps"]["mean"] == 4


def test_grids():
    config = configure(method="sepo")
    study = STUDIES["ratios"]
    whole = study.grid(config, {}, quick=False, seeds=[3])
    assert len(whole) == 25
    assert whole[0] == {"seed": 3, "chosen_ratio": 0.1, "rejected_ratio": 0.1}
    assert len(study.grid(config, {}, quick=True, seeds=[0, 1])) == 18
    given = study.grid(config, {"chosen_ratios": [0.2]}, quick=True, seeds=[0])
    assert {cell["chosen_ratio"] for cell in given} == {0.2}
    samples = STUDIES["oracle_data"].grid(config, {}, quick=False, seeds=[0])
    assert len(samples) == 9 * 3 + 1


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_study_varies_settings_that_its_methods_have(name):
    study = STUDIES[name]
    for method in study.methods:
        known = {setting for setting, _ in dotted_names(RunConfig, method)}
        assert {axis.setting for axis in study.axes} - {None} <= known
        assert set(study.settings) <= known
        assert method in METHODS
    assert set(study.repeats) <= {"seed", *(axis.column for axis in study.axes)}
    for axis in study.axes:
        assert set(axis.quick) <= set(axis.values)


def test_with_settings():
    config = configure(method="sepo")
    changed = with_settings(config, {"selection.chosen_ratio": 0.7, "seed": 5, "oracle.loss.beta": 0.2})
    assert (changed.selection.chosen_ratio, changed.seed, changed.oracle.loss.beta) == (0.7, 5, 0.2)
    assert changed.selection.rejected_ratio == config.selection.rejected_ratio


def test_options_go_to_the_study_and_to_its_runs(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 2e-4\noracle: {learning_rate: 3e-5}\n")
    words = ["--chosen_ratios", "0.2", "0.4", "--quick", "--seeds", "4", "5", "--plots", "false", "--loss.reward_scale",
             "2", "--config", str(tmp_path / "run.yaml")]  # fmt: skip
    config, own = read("ratios", STUDIES["ratios"], words)
    assert own == {
        "values": {"chosen_ratios": [0.2, 0.4]},
        "quick": True,
        "plots": False,
        "seeds": [4, 5],
        "options": {},
    }
    assert (config.method, config.output_dir, config.learning_rate) == ("sepo", "runs/study-ratios", 2e-4)
    assert (config.loss.reward_scale, config.oracle.learning_rate) == (2.0, 3e-5)


@pytest.mark.parametrize("name", ["ratios", "oracle_data", "oracle_size"])
def test_other_methods_train_on_selected_tokens_too(name):
    """The oracle's settings are taken although the method alone would not use them."""
    config, _ = read(name, STUDIES[name], ["--method", "simpo", "--oracle.learning_rate", "5e-5"])
    assert config.oracle.learning_rate == 5e-5
    assert config.selection.active


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ratio"], ["unknown study 'ratio'", "did you mean 'ratios'"]),
        (["ratios", "--selection.chosen_ratio", "0.3"], ["selection.chosen_ratio", "--chosen_ratios"]),
        (["ratios", "--seed", "3"], ["seed", "--seeds"]),
        (["ratios", "--chosen_ratios", "a"], ["chosen_ratios", "numbers", "'a'"]),
        (["ratios", "--chosen_ratios"], ["chosen_ratios", "at least one"]),
        (["ratios", "--chosen_ratios", "0.3", "0.3"], ["chosen_ratios", "different"]),
        (["ratios", "--chosen_ratios", "1.5"], ["selection.chosen_ratio", "1.5", "(0, 1]"]),
        (["ratios", "--seeds", "-1"], ["seed", "-1"]),
        (["ratios", "--quick", "maybe"], ["quick", "true or false"]),
        (["ratios", "--check"], ["check", "pyprefopt train --check"]),
        (["ratios", "--method", "sft"], ["method", "sepo, simpo, dpo"]),
        (["ratios", "--data", "pairs.jsonl", "--model", "m", "--eval_ratio", "0"], ["eval_ratio", "eval_data"]),
        (["ratios", "--learnin_rate", "1"], ["learnin_rate", "learning_rate"]),
        (["oracle_size", "--oracle", "somewhere"], ["oracle.path", "leave it out"]),
        (["ratios", "--overwrite"], ["overwrite does not apply to a study", "leave it out"]),
        (["oracle_size", "--oracle_models", "20"], ["oracle_models", "20", "8"]),
        (["oracle_size", "--oracle_models", "./nowhere"], ["nowhere"]),
        (["oracle_size", "--model", "m", "--data", "pairs.jsonl"], ["oracle_models", "must be given"]),
        (["oracle_data", "--oracle", "somewhere"], ["oracle.path", "ready checkpoint"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "run", lambda *_: pytest.fail("ran"))
    assert cli.main(["study", *words]) == 2
    message = capsys.readouterr().err
    for part in said:
        assert part in message


def test_matplotlib_is_asked_for_before_anything_runs(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pyprefopt\[analysis\].*plots false"):
        run_study("ratios", small(inputs, tmp_path))


def test_help(capsys):
    assert cli.main(["study", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    with pytest.raises(SystemExit) as stop:
        cli.main(["study", "oracle_data", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{option}" in shown for option in ("fractions", "samples", "seeds", "quick", "plots"))
