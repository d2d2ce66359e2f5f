"""The study of decoding: its numbers against a plain way, and its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pyprefopt
from pyprefopt.cli.main import main
from pyprefopt.data.embedded import score_response
from pyprefopt.errors import ConfigError
from pyprefopt.evaluation.decoding import rewards_on_curve, tradeoff_table
from pyprefopt.generation.decoders import KLThreshold, LengthControl, Mixing
from pyprefopt.studies.decoding import Decoders
from tests.generation.conftest import PROMPTS, models, prompts  # noqa: F401


def made_up(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Three points of a curve and one beside it, 12 prompts with two samples each."""
    chance = np.random.default_rng(seed)
    points = pl.DataFrame({"point": [0, 1, 2, 3], "decoder": ["mixing"] * 3 + ["other"]})
    lines: list[dict[str, Any]] = []
    for point, kl in enumerate((0.0, 2.0, 4.0, 1.0)):
        for row in range(12):
            for _ in range(2):
                reward = kl + chance.normal() + (1 if point == 3 else 0)
                lines.append(
                    {
                        "point": point, "row": row * 7, "reward": reward, "kl": kl + 0.1 * chance.normal(),
                        "kl_exact": kl, "tokens": float(chance.integers(1, 9)), "finished": 1.0,
                    }
                )  # fmt: skip
    return points, pl.DataFrame(lines)


def test_means_and_gain_by_hand() -> None:
    points, samples = made_up()
    table = tradeoff_table(points, samples, range(3), draws=400)
    means = samples.group_by("point", maintain_order=True).mean()
    for name in ("reward", "kl", "kl_exact", "tokens", "finished"):
        assert table[name].to_list() == pytest.approx(means[name].to_list())
    x, y = means["kl"].to_list(), means["reward"].to_list()
    share = (x[3] - x[0]) / (x[1] - x[0])
    assert table["gain"][3] == pytest.approx(y[3] - (y[0] + share * (y[1] - y[0])))
    assert table["gain"][:3].null_count() == 3
    assert table["samples"].to_list() == [24] * 4
    again = tradeoff_table(points, samples.sample(fraction=1, shuffle=True, seed=1), range(3), draws=400)
    for name in ("reward", "gain_low", "gain_high", "kl_low"):
        assert again[name].to_list() == pytest.approx(table[name].to_list(), nan_ok=True)


def test_intervals_are_of_prompts_drawn_for_all_points_alike() -> None:
    """A reward that differs between prompts alone moves no gain; its own interval is that of a plain bootstrap."""
    points, samples = made_up()
    own = pl.col("point").replace_strict({0: 0.0, 1: 2.0, 2: 4.0, 3: 1.5})
    by_prompt = samples.with_columns(reward=pl.col("row") + own, kl=pl.col("kl_exact"))
    table = tradeoff_table(points, by_prompt, range(3), draws=2000)
    assert (table["gain_low"][3], table["gain_high"][3]) == pytest.approx((0.5, 0.5))
    chance = np.random.default_rng(5)
    drawn = [np.mean(chance.choice(np.arange(12) * 7, 12)) for _ in range(4000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert table["reward_low"][0] == pytest.approx(low, abs=1.5)
    assert table["reward_high"][0] == pytest.approx(high, abs=1.5)


def test_samples_without_a_reward_count_in_no_mean_of_rewards() -> None:
    points, samples = made_up()
    without = pl.when(pl.int_range(pl.len()) % 5 == 0).then(float("nan")).otherwise("reward").alias("reward")
    table = tradeoff_table(points, samples.with_columns(without), range(3), draws=200)
    left = samples.filter(pl.int_range(pl.len()) % 5 != 0).group_by("point", maintain_order=True).agg(
        pl.col("reward").mean(), left=pl.len()
    )  # fmt: skip
    assert table["reward"].to_list() == pytest.approx(left["reward"].to_list())
    assert table["unscored"].to_list() == (24 - left["left"]).to_list()
    assert table["kl"].to_list() == pytest.approx(samples.group_by("point", maintain_order=True).mean()["kl"].to_list())
    assert (table["reward_low"] < table["reward"]).all()


def test_one_prompt_or_no_score_has_no_interval() -> None:
    points, samples = made_up()
    one = tradeoff_table(points, samples.filter(row=0), range(3), draws=50)
    for name in ("reward_low", "kl_high", "gain_low", "gain_high"):
        assert one[name].null_count() == 4
    unscored = samples.with_columns(reward=pl.when(pl.col("point") == 1).then(float("nan")).otherwise("reward"))
    table = tradeoff_table(points, unscored, range(3), draws=50)
    assert (table["reward"][1], table["reward_low"][1]) == (None, None)
    assert table["kl_low"].null_count() == 0


def test_the_curve_between_its_points() -> None:
    curve = np.array([[4.0, 0.0, 2.0]]), np.array([[1.0, 0.0, 3.0]])
    found = rewards_on_curve(np.array([[1.0, 3.0, 4.0, 4.1, -0.1]]), *curve)[0]
    assert found[:3].tolist() == [1.5, 2.0, 1.0]
    assert np.isnan(found[3:]).all()
    assert np.isnan(rewards_on_curve(np.array([[0.0]]), np.array([[0.0]]), np.array([[1.0]]))).all()


def test_points_and_rules_stand_side_by_side() -> None:
    decoders = Decoders(a=(0, 1), t=(3,), b=(0.5,), below="mixing")
    assert decoders.rules == (Mixing(0), Mixing(1), LengthControl(3), KLThreshold(0.5, "mixing"))
    assert decoders.table.rows() == [
        (0, "mixing", "a", 0.0), (1, "mixing", "a", 1.0), (2, "length_control", "t", 3.0),
        (3, "kl_threshold", "b", 0.5),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="a must be two values or more"):
        Decoders(a=(1,))
    with pytest.raises(ConfigError, match="t must be different values"):
        Decoders(t=(1, 1))


def test_the_command(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    policy, ref = map(str, models)
    words = ["study", "decoding", str(prompts), "--policy", policy, "--ref", ref, "--output_dir", str(tmp_path / "d")]
    few = [
        "--a",
        "0",
        "0.5",
        "1",
        "--t",
        "2",
        "--b",
        "1e-6",
        "--max_new_tokens",
        "8",
        "--samples",
        "2",
        "--threads",
        "1",
    ]
    assert main([*words, *few, "--reward_model", "embedded:rule", "--log_level", "warning"]) == 0
    printed = capsys.readouterr().out
    table = pl.read_csv(tmp_path / "d" / "decoding.csv")
    assert table["decoder"].to_list() == ["mixing"] * 3 + ["length_control", "kl_threshold"]
    assert table["samples"].to_list() == [8] * 5
    for line, decode in ((table.row(1, named=True), Mixing(0.5)), (table.row(3, named=True), LengthControl(2))):
        alone = pyprefopt.generate(policy, str(prompts), ref=ref, decode=decode, samples=2, max_new_tokens=8)
        cost = (alone["logp_sampled"].list.sum() - alone["logp_ref"].list.sum()).mean()
        rewards = [score_response(PROMPTS[row], text) for row, text in alone.select("row", "response").rows()]
        assert line["kl"] == pytest.approx(cost)
        assert line["kl_exact"] == pytest.approx(alone["kl_sampled"].list.sum().mean())
        assert line["reward"] == pytest.approx(np.mean(rewards))
        assert line["tokens"] == pytest.approx(alone["ids"].list.len().mean())
    assert table["kl"][0] == 0  # mixing a 0 is the reference
    for name in ("reward", "kl", "tokens"):  # a threshold below every divergence is the policy
        assert table[name][4] == pytest.approx(table[name][2])
    assert "study decoding" in printed
    assert (tmp_path / "d" / "decoding.svg").read_text().startswith("<?xml")
    assert (tmp_path / "d" / "decoding.png").stat().st_size > 10_000
    samples = pl.read_parquet(tmp_path / "d" / "samples.parquet")
    means = samples.group_by("decoder", "setting", "value", maintain_order=True).agg(pl.col("reward").mean(), pl.len())
    assert means["reward"].to_list() == pytest.approx(table["reward"].to_list())
    assert means["len"].to_list() == [8] * 5
    assert main([*words, "--reward_model", "nowhere/at/all"]) == 2
    assert "reward_model must exist" in capsys.readouterr().err
    assert main(["study", "decodng"]) == 2
    assert "did you mean 'decoding'" in capsys.readouterr().err
    assert main(["study"]) == 0
    assert "decoding  " in capsys.readouterr().out
