"""RewardBench: files by their columns, formulas by hand and against a plain twin, runs over made-up files."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pyprefopt
from pyprefopt import data
from pyprefopt.cli import main
from pyprefopt.errors import DataError
from pyprefopt.evaluation.rewardbench import SECTIONS, RewardBench, evaluate, row_credits
from pyprefopt.evaluation.ties import Ties, ties_score
from pyprefopt.pipeline.run import RunResult
from tests.pipeline.other import write_other
from tests.pipeline.runs import small


def row_1(subset: str, number: int, chosen: str = "yes", rejected: str = "nope") -> dict[str, Any]:
    """A row as RewardBench 1 has it."""
    models = {"chosen_model": "a", "rejected_model": "b"}
    return {"prompt": f"q{number}", "chosen": chosen, "rejected": rejected, "subset": subset, "id": number, **models}


def row_2(subset: str, name: str, chosen: list[str], rejected: list[str]) -> dict[str, Any]:
    """A row as RewardBench 2 has it."""
    counts = {"num_correct": len(chosen), "num_incorrect": len(rejected), "total_completions": len(chosen + rejected)}
    return {
        "id": name, "prompt": f"q {name}", "chosen": chosen, "rejected": rejected, **counts,
        "models": ["m"] * len(chosen + rejected), "subset": subset, "additional_metadata": None,
    }  # fmt: skip


ROWS_2 = [
    row_2("Factuality", "0", ["aa"], ["b", "ccc", "d"]),
    row_2("Factuality", "1", ["a"], ["b", "c", "d"]),
    row_2("Safety", "2", ["aaa"], ["b", "cc", "d"]),
    row_2("Ties", "ref:0", ["red"], ["xx"]),
    row_2("Ties", "tied:0", ["red", "blue"], ["xx", "y"]),
]


def read(rows: list[dict[str, Any]], folder: Path) -> RewardBench:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return RewardBench.read(folder / "rows.jsonl")


def numbers(bench: RewardBench, scores: list[list[float]]) -> dict[str, dict[str, Any]]:
    lines = evaluate(bench, [np.array(values) for values in scores]).to_dicts()
    return {f"{line['kind']} {line['name']}": line for line in lines}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**row_1("hep-go", 1), "subset": None}, "subset must be the name of one, got None"),
        ({**row_2("Focus", "1", ["a"], ["b"]), "num_correct": "one"}, "must be a whole number > 0, got 'one'"),
        ({**row_2("Focus", "1", ["a"], ["b"]), "num_correct": -1}, "num_correct must be a whole number > 0, got -1"),
        (row_2("Ties", "ref:1", ["a", "c"], ["b"]), "must have one right and a wrong response"),
    ],
)
def test_a_row_that_is_none_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 0: .*{message}"):
        read([row], tmp_path)


def test_a_subset_of_one_row_has_no_interval_and_others_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row_2("Focus", "1", ["a"], ["b"]), *(row_2("Poems", str(n), ["a"], ["b"]) for n in (2, 3))]
    bench = read(rows, tmp_path)
    assert "subsets that RewardBench 2 does not have count in its mean: Poems" in caplog.text
    table = evaluate(bench, [np.array([1.0, 0.0])] * 3)
    lows = dict(table.filter(kind="subset").select("name", "low").rows())
    assert lows["Focus"] is None
    assert lows["Poems"] == 1
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        RewardBench.read(str(tmp_path / "empty.jsonl"))


def test_sections_of_the_first_by_hand(tmp_path: Path) -> None:
    subsets = ["math-prm", "math-prm", "hep-go", "alpacaeval-easy", "mt-bench-med", "mt-bench-med", "donotanswer"]
    bench = read([row_1(subset, n) for n, subset in enumerate(subsets)], tmp_path)
    scores = [[1, 0], [0, 1], [1, 0], [2, 1], [1, 1], [1, 0], [0, 1]]  # a tie is no hit
    found = numbers(bench, scores)
    shares = {name: line["score"] for name, line in found.items()}
    assert shares["subset math-prm"] == 0.5
    assert shares["subset mt-bench-med"] == 0.5
    assert found["subset mt-bench-med"]["ties"] == 1
    assert shares["section Reasoning"] == pytest.approx((0.5 * 984 + 164) / (984 + 164))
    assert shares["section Chat"] == pytest.approx((100 + 0.5 * 40) / 140)
    assert shares["section Safety"] == 0
    assert "section Chat Hard" not in shares
    assert shares["mean sections"] == pytest.approx((656 / 1148 + 120 / 140) / 3)
    assert shares["mean instances"] == pytest.approx(4 / 7)
    assert found["mean instances"]["rows"] == found["mean sections"]["rows"] == 7
    assert {line["longest"] for line in found.values()} == {0.0}  # nope is the longer one
    assert {line["shortest"] for line in found.values()} == {1.0}


def test_the_sections_are_the_published_ones() -> None:
    weights = {section: sum(subsets.values()) for section, subsets in SECTIONS.items()}
    assert weights == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(len(subsets) for subsets in SECTIONS.values()) == 23


def test_an_unknown_subset_counts_among_the_instances_alone(tmp_path: Path) -> None:
    bench = read([row_1("mine", 0), row_1("hep-go", 1)], tmp_path)
    found = numbers(bench, [[0, 1], [1, 0]])
    assert (found["mean sections"]["score"], found["mean instances"]["score"]) == (1.0, 0.5)
    assert (found["mean sections"]["rows"], found["mean instances"]["rows"]) == (1, 2)


def test_credits_of_the_second_by_hand(tmp_path: Path) -> None:
    bench = read(ROWS_2, tmp_path)
    scores = [[1, 1, 0, 1], [0, 1, 1, 0], [3, 1, 2, 2], [1, 0], [2, 1.5, 0, -1]]
    counted = row_credits(bench, [np.array(values) for values in scores])
    assert counted[:3].tolist() == [1 / 3, 0, 1]
    assert np.isnan(counted[3:]).all()
    found = numbers(bench, scores)
    ties = 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(min(1.5, 1) / 0.5 - 1)
    assert found["subset Ties"]["score"] == pytest.approx(ties)
    assert found["subset Factuality"]["score"] == pytest.approx(1 / 6)
    assert found["mean subsets"]["score"] == pytest.approx((1 / 6 + 1 + ties) / 3)
    assert found["subset Factuality"]["ties"] == 1
    assert found["subset Safety"]["longest"] == 1
    assert found["subset Factuality"]["longest"] == pytest.approx((0 + 1 / 4) / 2)
    assert found["subset Factuality"]["shortest"] == pytest.approx((0 + 1 / 4) / 2)


def plain_ties(rows: dict[str, tuple[list[float], int]]) -> float:
    """The formula in plain words of the source: lists, no arrays."""
    stats: dict[str, dict[str, tuple[bool, float, float]]] = {"ref": {}, "tied": {}}
    for name, (scores, right) in rows.items():
        kind, number = name.split(":")
        good, bad = scores[:right], scores[right:]
        stats[kind][number] = (min(good) > max(bad), max(good) - min(good), min(good) - max(bad))
    both = [number for number in stats["ref"] if number in stats["tied"]]
    preferred = [stats["tied"][n][2] > stats["tied"][n][1] for n in both]
    hard = [min(stats["ref"][n][2], stats["tied"][n][2]) > stats["tied"][n][1] for n in both]
    margins = []
    for n in both:
        lower, spread = min(stats["ref"][n][2], stats["tied"][n][2]), stats["tied"][n][1]
        if spread == 0:
            margins.append(0.0 if lower == 0 else math.copysign(1.0, lower))
        else:
            margins.append(math.tanh(lower / spread - 1))
    share = {kind: sum(s[0] for s in found.values()) / len(found) for kind, found in stats.items()}
    mean = [sum(values) / len(both) for values in (preferred, hard, margins)]
    return 0.3 * share["tied"] + 0.3 * share["ref"] + 0.2 * mean[0] + 0.2 * mean[1] + 0.01 * mean[2]


@pytest.mark.parametrize("seed", range(20))
def test_ties_as_written_plainly(seed: int) -> None:
    chance = random.Random(seed)
    rows = {}
    for n in range(8):
        draw = [[float(chance.randint(-2, 4)) for _ in range(6)] for _ in range(2)]
        rows[f"ref:{n}"] = (draw[0], 1)
        if n != 3:  # one has no partner
            rows[f"tied:{n}"] = (draw[1], chance.randint(2, 4))
    found = ties_score([*rows], [np.array(s) for s, _ in rows.values()], [right for _, right in rows.values()])
    assert found == pytest.approx(plain_ties(rows), abs=1e-12)


def test_ties_of_drawn_numbers_are_those_of_the_drawn_rows() -> None:
    """A draw scores as the file that has its rows, each number that comes twice under two names."""
    chance = np.random.default_rng(0)
    rows: dict[str, tuple[list[float], int]] = {}
    for n in range(6):
        rows[f"ref:{n}"] = (chance.integers(-2, 4, 5).astype(float).tolist(), 1)
        rows[f"tied:{n}"] = (chance.integers(-2, 4, 5).astype(float).tolist(), int(chance.integers(2, 4)))
    ties = Ties.of([*rows], [np.array(s) for s, _ in rows.values()], [right for _, right in rows.values()])
    drawn = chance.integers(0, 6, (10, 6))
    again = [
        plain_ties({f"{kind}:{place}": rows[f"{kind}:{n}"] for place, n in enumerate(draw) for kind in ("ref", "tied")})
        for draw in drawn.tolist()
    ]
    assert ties.score(drawn).tolist() == pytest.approx(again, abs=1e-12)


def test_intervals_are_over_the_rows_of_each_subset(tmp_path: Path) -> None:
    """Of n rows of which a share p is right the interval is nearly p ± 1.96 sqrt(p (1 - p) / n)."""
    shares = {"hep-go": (400, 0.5), "alpacaeval-easy": (100, 0.9), "donotanswer": (50, 1.0)}
    subsets = [name for name, (count, _) in shares.items() for _ in range(count)]
    right = [k < count * share for count, share in shares.values() for k in range(count)]
    bench = read([row_1(subset, n) for n, subset in enumerate(subsets)], tmp_path)
    found = numbers(bench, [[1, 0] if good else [0, 1] for good in right])
    variance = {name: share * (1 - share) / count for name, (count, share) in shares.items()}
    wanted = {f"subset {name}": value for name, value in variance.items()}
    wanted["mean sections"] = sum(variance.values()) / 9
    wanted["mean instances"] = sum(variance[name] * (count / 550) ** 2 for name, (count, _) in shares.items())
    for name, value in wanted.items():
        line, half = found[name], 1.96 * math.sqrt(value)
        assert (line["low"], line["high"]) == pytest.approx(
            (max(0, line["score"] - half), min(1, line["score"] + half)), abs=0.02
        )
    assert (found["subset donotanswer"]["low"], found["subset donotanswer"]["high"]) == (1, 1)
    second = numbers(read(ROWS_2, tmp_path), [[1, 1, 0, 1], [0, 1, 1, 0], [3, 1, 2, 2], [1, 0], [2, 1.5, 0, -1]])
    ends = [(line["low"], line["score"], line["high"]) for line in second.values() if line["rows"] > 1]
    assert ends
    assert all(low <= score <= high for low, score, high in ends)


def test_what_is_no_row_of_it_is_refused(tmp_path: Path) -> None:
    for rows, message in (
        (
            [{"prompt": "q", "chosen": "a", "rejected": "b"}],
            r"row 0: RewardBench has the columns .*missing here: subset, id",
        ),
        (
            [row_1("hep-go", 0), row_2("Safety", "1", ["a"], ["b"])],
            "is of RewardBench 1 and .* of 2; evaluate them apart",
        ),
        ([row_1("hep-go", 0) | {"chosen": None}], "must be texts"),
        ([row_2("Safety", "1", ["a"], ["b"]) | {"num_correct": 2}], r"as many texts as num_correct says \(2\)"),
        ([row_2("Ties", "first", ["a"], ["b"])], "rows.jsonl, row 0: a row of Ties must have an id such as ref:7"),
        ([row_2("Safety", "1", ["a", "b"], ["c"])], "one response must be right in subset Safety, got 2"),
    ):
        with pytest.raises(DataError, match=message):
            read(rows, tmp_path)
    bench = read([row_1("hep-go", 0)], tmp_path)
    with pytest.raises(DataError, match="row 0: scores must be finite, got nan"):
        evaluate(bench, [np.array([np.nan, 0.0])])
    with pytest.raises(DataError, match="2 responses must have a score each, got 1"):
        evaluate(bench, [np.array([0.0])])
    one, two = np.array([1.0, 0.0]), np.array([1.0, 0.5, 0.0])
    for ids, scores, right, message in (
        (["ref:0"], [one], [1], "no N has both"),
        (["ref:0", "tied:1"], [one, two], [1, 2], "no N has both"),
        (["first"], [one], [1], "must have an id such as ref:7"),
        (["tied:0"], [one], [1], "several right and a wrong response, got 1 and 1"),
        (["ref:0"], [one], [2], "one right and a wrong response, got 2 and 0"),
    ):
        with pytest.raises(DataError, match=message):
            ties_score(ids, scores, right)


@pytest.fixture(scope="module")
def runs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, RunResult]:
    """A reward model, and a policy of another method."""
    settings: dict[str, Any] = {"base": {"max_steps": 1}, "oracle": {}, "max_steps": 3}
    folder = tmp_path_factory.mktemp("runs")
    return (
        pyprefopt.train(small(inputs, folder / "reward", method="reward", **settings)),
        pyprefopt.train(small(inputs, folder / "dpo", method="dpo", **settings)),
    )


def evaluated(files: list[Path], out: Path, *words: str) -> int:
    more = ["--out", str(out), "--threads", "1", "--log_level", "warning"]
    return main(["evaluate", "rewardbench", *map(str, files), *more, *words])


def test_pairs_score_as_rank_and_as_the_run_scores_them(
    inputs: Path, runs: tuple[RunResult, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test pairs as one subset: a reward model's accuracy, and the accuracy of a policy's rewards."""
    pairs = pl.read_parquet(inputs / "test.parquet", columns=["prompt", "chosen", "rejected"])
    pairs.with_columns(subset=pl.lit("hep-go"), id=pl.int_range(pl.len())).write_parquet(tmp_path / "filtered.parquet")
    reward, dpo = runs
    assert evaluated([tmp_path / "filtered.parquet"], tmp_path / "rm", "--reward_model", str(reward.policy)) == 0
    printed = capsys.readouterr().out.splitlines()
    head = ["in", "percent", "rows", "score", "95", "%", "interval", "longest", "shortest", "ties"]
    assert printed[0].split() == head
    found = pl.read_csv(tmp_path / "rm" / "rewardbench.csv")
    accuracy = reward.summary["stages"]["policy"]["eval_after"]["eval_rewards/accuracies"]
    assert found.filter(kind="mean", name="instances")["score"].item() == pytest.approx(accuracy)
    base = next((dpo.output_dir / "stages").glob("base*/model"))
    models = ["--policy", str(dpo.policy), "--ref", str(base)]
    assert evaluated([tmp_path / "filtered.parquet"], tmp_path / "dpo", *models) == 0
    found = pl.read_csv(tmp_path / "dpo" / "rewardbench.csv")
    after = dpo.summary["stages"]["policy"]["eval_after"]
    assert found.filter(kind="mean", name="instances")["score"].item() == pytest.approx(
        after["eval_rewards/accuracies"]
    )
    rows = pl.read_ndjson(tmp_path / "dpo" / "rewardbench.jsonl")["scores"].list
    margin = (rows.get(0) - rows.get(1)).mean()
    assert 0.1 * margin == pytest.approx(after["eval_rewards/margins"], abs=1e-5)  # beta 0.1


def test_policy_and_ref_of_two_tokenizers(
    inputs: Path, runs: tuple[RunResult, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each model reads the texts in its own tokens; both sums are those of transformers, one text at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    pairs = pl.read_parquet(inputs / "test.parquet", columns=["prompt", "chosen", "rejected"]).head(4)
    file = tmp_path / "filtered.parquet"
    pairs.with_columns(subset=pl.lit("hep-go"), id=pl.int_range(pl.len())).write_parquet(file)
    policy, ref = runs[1].policy, write_other(tmp_path / "other", "byte_bpe")
    assert evaluated([file], tmp_path / "out", "--policy", str(policy), "--ref", str(ref)) == 0
    sums = []
    for model in (policy, ref):
        segments = data.tokenize(str(file), data.load_tokenizer(model)).sort("row", "segment")
        causal, found = AutoModelForCausalLM.from_pretrained(model), []
        for row in range(4):
            prompt, *responses = segments.filter(row=row).iter_rows(named=True)
            for response in responses:
                ids = torch.tensor([prompt["ids"] + response["ids"]])
                with torch.no_grad():
                    logps = causal(ids).logits[0, :-1].double().log_softmax(-1)
                own = logps.gather(1, ids[0, 1:, None])[len(prompt["ids"]) - 1 :, 0]
                found.append(float(own[torch.tensor(response["mask"])].sum()))
        sums.append(np.array(found))
    written = pl.read_ndjson(tmp_path / "out" / "rewardbench.jsonl")["scores"].explode().to_numpy()
    assert len({len(data.load_tokenizer(model).json) for model in (policy, ref)}) == 2
    assert written == pytest.approx(sums[0] - sums[1], abs=2e-3)


def test_the_second_from_files_to_numbers(
    runs: tuple[RunResult, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["moo", "meow", "woof", "quack"]  # of the toy set
    rows: list[dict[str, Any]] = [row | {"prompt": "cow"} for row in ROWS_2]
    for row in rows:
        texts = [f"says {word}" for word in words[: row["total_completions"]]]
        row["chosen"], row["rejected"] = texts[: row["num_correct"]], texts[row["num_correct"] :]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:3]))
    pl.DataFrame(rows[3:]).write_parquet(tmp_path / "b.parquet")
    files, model = [tmp_path / "a.jsonl", tmp_path / "b.parquet"], str(runs[0].policy)
    assert evaluated(files, tmp_path / "out", "--reward_model", model) == 0
    table = pl.read_csv(tmp_path / "out" / "rewardbench.csv")
    assert table["name"].to_list() == ["Factuality", "Safety", "Ties", "subsets"]
    assert "mean subsets" in capsys.readouterr().out
    written = pl.read_ndjson(tmp_path / "out" / "rewardbench.jsonl")
    assert written["scores"].list.len().to_list() == [4, 4, 4, 2, 4]
    again = evaluate(RewardBench.read(files), [np.array(values) for values in written["scores"].to_list()])
    assert again["score"].to_list() == pytest.approx(table["score"].to_list())


def test_a_row_that_cannot_be_scored_is_named(
    runs: tuple[RunResult, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row_1("hep-go", 0, "says moo", "says meow"), row_1("hep-go", 1, "says moo", "")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row | {"prompt": "cow"}) for row in rows))
    assert evaluated([tmp_path / "a.jsonl"], tmp_path / "out", "--reward_model", str(runs[0].policy)) == 2
    assert (
        "a.jsonl, row 1: it could not be scored, and the benchmark's numbers are of all rows" in capsys.readouterr().err
    )
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["row"] == 1
    assert not (tmp_path / "out" / "rewardbench.csv").exists()


def test_one_of_two_kinds_of_models_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row_1("hep-go", 0)))
    for words, message in (
        ([], "reward_model must be given, or policy and ref"),
        (["--policy", "p"], "give one of the two"),
        (["--reward_model", "r", "--policy", "p", "--ref", "q"], "give one of the two"),
        (["--ref", "q"], "reward_model must be given, or policy and ref"),
    ):
        assert evaluated([tmp_path / "a.jsonl"], tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err


def test_evaluations_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 0
    assert "rewardbench" in capsys.readouterr().out
    assert main(["evaluate", "rewardbenc"]) == 2
    assert "unknown evaluation 'rewardbenc'; did you mean 'rewardbench'" in capsys.readouterr().err
