"""How wrong token rewards hurt: noise on the rewards against ranking accuracy, for tgdpo, dpo-reg and sepo.

    python -m benchmarks.noise --out docs/noise.md

A made-up task on which the signal is known: every response holds sixteen filler words and eight marked ones, of two
kinds; a chosen response has more of the one, a rejected one of the other. Base and oracle are trained once, policies
once for each method, noise level and seed. Noise is given in standard deviations of the method's own clean rewards, so
that the methods can be compared. Two rows are controls: the method without rewards, and rewards that are nothing but
noise, of the clean ones' size.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import polars as pl

import pyprefopt
from pyprefopt.data.embedded import EXTRA, SOUNDS, filler_words, write_tokenizer
from pyprefopt.settings.resolve import configure

METHODS: dict[str, dict[str, Any]] = {
    "tgdpo": {"loss": {"beta": 0.5, "alpha": 2.0}},
    "dpo-reg": {"loss": {"beta": 0.5, "alpha": 0.5}},
    "sepo": {"selection": {"chosen_ratio": 0.2, "rejected_ratio": 0.2}},
}
WITHOUT: dict[str, dict[str, Any]] = {  # the same method where no reward counts: dpo, dpo, and simpo without a margin
    "tgdpo": {"loss": {"beta": 0.5, "alpha": 0.0}},
    "dpo-reg": {"loss": {"beta": 0.5, "alpha": 0.0}},
    "sepo": {"selection": {"chosen_ratio": 1.0, "rejected_ratio": 1.0}},
}
MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "vocab_size": 512,
}  # fmt: skip
STAGE = {"learning_rate": 3e-3, "global_batch_size": 32, "adam_beta2": 0.999}
FILLER, MARKED = 16, 8
CHANCE, NONE = "only noise", "without rewards"


def responses(source: random.Random, filler: list[str], good: int) -> str:
    """Filler and `good` words of the first kind, the rest of the second, shuffled."""
    words = filler + source.choices(SOUNDS, k=good) + source.choices(EXTRA, k=MARKED - good)
    return " ".join(source.sample(words, len(words)))


def write_task(directory: Path, rows: int) -> None:
    """train.parquet, test.parquet (pairs), sft.parquet, tokenizer/, config.json."""
    write_tokenizer(directory / "tokenizer")
    (directory / "config.json").write_text(json.dumps(MODEL))
    words = list(filler_words())[:64]
    for split in ("train", "test", "sft"):
        source, lines = random.Random(split), []  # noqa: S311
        for _ in range(rows):
            prompt, filler = " ".join(source.choices(words, k=4)), source.choices(words, k=FILLER)
            chosen, rejected = (responses(source, filler, good) for good in (5, 3))
            either = {"response": source.choice([chosen, rejected])}
            lines.append({"prompt": prompt} | (either if split == "sft" else {"chosen": chosen, "rejected": rejected}))
        pl.DataFrame(lines).write_parquet(directory / f"{split}.parquet")


def train(
    task: Path, method: str, rewards: dict[str, Any], settings: dict[str, dict[str, Any]] = METHODS
) -> dict[str, Any]:
    """One policy; base and oracle are those of the runs before. The summary's stages."""
    oracle = {**STAGE, "learning_rate": 1e-3, "loss": {"beta": 1.0}} if rewards["name"] == "dpo" else {}
    config = configure(
        method=method, model=str(task / "config.json"), tokenizer=str(task / "tokenizer"),
        data=str(task / "train.parquet"), eval_data=str(task / "test.parquet"), policy_init="base",
        base={**STAGE, "data": str(task / "sft.parquet"), "num_train_epochs": 2.0},
        oracle=oracle, rewards=rewards, max_prompt_tokens=32,
        max_tokens=64, max_tokens_per_batch=4096, save_steps=0, output_dir=str(task / "run"), threads=1,
        **{**STAGE, "learning_rate": 5e-4}, **settings[method],
    )  # fmt: skip
    stages: dict[str, Any] = pyprefopt.train(config).summary["stages"]
    return stages


def accuracy(stages: dict[str, Any], when: str = "after") -> float:
    """Share of test pairs whose chosen response has the higher mean log-prob."""
    return float(stages["policy"][f"eval_{when}"]["eval_ranking_accuracy"])


def measure(task: Path, levels: list[float], seeds: int) -> dict[str, dict[str, list[float]]]:
    """Accuracies by method and noise level, a value a seed; `before` is the base."""
    found: dict[str, dict[str, list[float]]] = {}
    for method in METHODS:
        clean = train(task, method, {"name": "dpo"})
        size = mean(clean["rewards"][side]["std_reward"] for side in ("chosen", "rejected"))
        none = train(task, method, {"name": "dpo"}, WITHOUT)
        rows = found[method] = {"before": [accuracy(clean, "before")], NONE: [accuracy(none)], "0": [accuracy(clean)]}
        for level in levels:
            noisy = [{"name": "dpo", "noise_std": level * size, "noise_seed": seed} for seed in range(seeds)]
            rows[f"{level:g}"] = [accuracy(train(task, method, rewards)) for rewards in noisy]
        chance = [{"name": "random", "beta": size, "noise_seed": seed, "transform": "raw"} for seed in range(seeds)]
        rows[CHANCE] = [accuracy(train(task, method, rewards)) for rewards in chance]
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table: a line a noise level, mean over seeds (lowest to highest)."""
    names = list(found)
    lines = ["| noise (sd of the rewards) | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for level in found[names[0]]:
        cells = []
        for name in names:
            values = found[name][level]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        label = "base, before training" if level == "before" else level
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(found: dict[str, dict[str, list[float]]], rows: int, seeds: int) -> str:
    """The page docs/noise.md."""
    settings = "\n".join(f"* {name}: `{json.dumps(given)}`" for name, given in METHODS.items())
    return f"""# Noise on the token rewards

    python -m benchmarks.noise --rows {rows} --seeds {seeds}

This wrote the page. The numbers are test ranking accuracy: mean log-prob of chosen above rejected. The rewards are
those of a DPO oracle, and noise is added to them (`--rewards.noise_std`). Its unit is the standard deviation of the
clean rewards of the same method.

{table(found)}

{rows} pairs to train and {rows} to test; a model of one layer; {seeds} seeds of the noise (lowest to highest in
brackets), one seed of everything else; {platform.processor() or platform.machine()} CPU.

* For `sepo` the rewards select the tokens. So noise changes which tokens are trained on.
* For the others noise changes how much each token counts.
* `dpo-reg` passes the rewards through sigmoid - 0.5 first. Noise comes on top.

Two rows are controls.

* "{NONE}": alpha 0, and for sepo all tokens. These are dpo, dpo, and simpo without a margin. All responses have one
  length here, so they differ by little but scale, to which Adam is blind.
* "{CHANCE}": rewards of nothing but noise, of the clean rewards' size.

The task is made up and small. The table shows how the methods differ in kind, not what they reach on real data.

Settings beside the shared ones in the script:

{settings}
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/noise.md"))
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--levels", type=float, nargs="+", default=[1.0, 4.0, 16.0])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), given.rows)
        found = measure(Path(folder), given.levels, given.seeds)
    given.out.write_text(page(found, given.rows, given.seeds))
    print(table(found))


if __name__ == "__main__":
    main()
