"""Every file of configs/paper runs as it stands: with a tiny model and tiny data in the place of its own, `--check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pyprefopt
from pyprefopt.settings.command_line import dotted
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure, load_config
from pyprefopt.settings.typed import read_yaml
from tests.data.prepared import write_tokenizer
from tests.pipeline.runs import MODEL

PAPER = Path(__file__).parent.parent.parent / "pyprefopt" / "configs" / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
WORDS = ["Name an animal that barks.", "What is two and two?", "Say hello to my friend.", "Which season is cold?"]
LONG = "Please read this first. " * 300  # longer, in bytes, than any file's limit of a prompt
CONTEXTS = {  # max_position_embeddings of what the files name; of a folder of one's own that of the model it is made of
    "meta-llama/Meta-Llama-3-8B-Instruct": 8192, "OpenRLHF/Llama-3-8b-sft-mixture": 8192,
    "meta-llama/Llama-3.2-3B-Instruct": 131072, "meta-llama/Llama-3.1-8B-Instruct": 131072,
    "google/gemma-2-2b-it": 8192, "google/gemma-2-9b-it": 8192, "google/gemma-2b-it": 8192,
    "meta-llama/Llama-2-7b-chat-hf": 4096, "meta-llama/Llama-2-13b-chat-hf": 4096, "huggyllama/llama-7b": 2048,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 2048, "tinyllama-1.1b-ultrachat": 2048, "EleutherAI/pythia-2.8b": 2048,
    "pythia-1b-ultrachat": 2048, "pythia-2.8b-ultrachat": 2048, "pythia-6.9b-ultrachat": 2048,
}  # fmt: skip
SMALL = {"TinyLlama/TinyLlama-1.1B-Chat-v1.0"}  # of less than 2B


def traits(file: Path) -> set[str]:
    """The settings that a file has, and its rewards; of the choices, which one."""
    settings = dotted(read_yaml(file))
    choices = ("rewards.name", "prompt_overflow", "zero_stage", "loss.alpha")
    return {*settings, *(f"{name} {settings[name]}" for name in choices if isinstance(settings.get(name), str))}


def covering(files: list[Path]) -> set[Path]:
    """A few of the files that between them have every setting."""
    left = set().union(*map(traits, files))
    chosen: set[Path] = set()
    while left:
        best = max(files, key=lambda file: len(traits(file) & left))
        chosen.add(best)
        left -= traits(best)
    return chosen


QUICK = covering(FILES)
RUNS = [pytest.param(file, id=file.stem, marks=[] if file in QUICK else pytest.mark.slow) for file in FILES]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer, a model of one layer with a long context, and data in the formats that files name."""
    directory = tmp_path_factory.mktemp("tiny")
    write_tokenizer(directory / "tokenizer")
    model = {**MODEL, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 8192}
    (directory / "config.json").write_text(json.dumps(model))
    answers = [f"{word.split()[-1]} it is, number {n}" for n, word in enumerate(WORDS)]
    prompts = [WORDS[0], LONG, *WORDS[1:], "Be brief."]
    pairs = [
        {"prompt": prompt, "chosen": f"Yes: {answers[n % 4]}", "rejected": f"No, {answers[(n + 1) % 4]}"}
        for n, prompt in enumerate(prompts)
    ]
    pairs[-1]["rejected"] = "no"
    sets = [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], "Well"], "scores": [2.0, 1.0, 0.0]}
        for row in pairs
    ]
    talks = [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in pairs
    ]
    for name, rows in (("pairs", pairs), ("candidates", sets), ("hh", talks)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def small(file: Path, tiny: Path, output_dir: Path) -> RunConfig:
    """The file's run, on tiny inputs."""
    named = read_yaml(file)
    kind = next((kind for kind in ("hh", "candidates") if kind in named["data"]), "pairs")
    model = str(tiny / "config.json")
    inputs: dict[str, Any] = {
        "model": model, "data": str(tiny / f"{kind}.jsonl"), "tokenizer": str(tiny / "tokenizer"),
        "output_dir": str(output_dir), "threads": 1,
    }  # fmt: skip
    inputs |= {"eval_data": inputs["data"]} if "eval_data" in named else {}
    inputs |= {"base": {"path": model}} if "path" in named.get("base", {}) else {}
    return configure(config=file, **inputs, check=True)


@pytest.mark.parametrize("file", RUNS)
def test_a_paper_file_runs(file: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(file, tiny, tmp_path / "run")
    result = pyprefopt.train(config)
    assert capsys.readouterr().out.startswith("check passed in")
    facts = result.summary["stages"]["data"]
    dropped = {"prompt_dropped": 1} if config.prompt_overflow == "drop" else {}
    if config.min_response_tokens > 1:
        dropped |= {"response_too_short": 1}
    assert facts["rows_dropped"] == dropped
    assert facts["rows_rejected"] == sum(dropped.values())  # what is too long or short is no bad row
    trained = {"oracle"} if config.rewards.name in ("dpo", "simpo") or config.method == "sepo" else set()
    trained |= {"base"} if config.policy_init == "base" else set()
    assert {"base", "oracle"} & set(result.summary["stages"]) == trained


def test_the_quick_runs_have_every_setting() -> None:
    assert set().union(*map(traits, QUICK)) == set().union(*map(traits, FILES))
    assert len(QUICK) < 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_paper_file_fits_its_models(file: Path) -> None:
    config = load_config(str(file))
    models = [path for path in (config.model, config.base.path, config.oracle.path) if path is not None]
    assert config.max_tokens <= min(CONTEXTS[path] for path in models)
    if config.rewards.name == "contrastive":
        assert (config.rewards.max_tokens, config.rewards.overflow) == (8192, "zero")
        assert config.rewards.max_tokens <= CONTEXTS[config.model]
    assert config.prompt_overflow != "error"
    assert config.on_error == "skip"
    assert config.eval_data is not None or config.eval_ratio == 0
    assert config.dtype == "bfloat16"
    assert config.gradient_checkpointing == (config.model not in SMALL)
    if config.model not in SMALL:
        assert config.zero_stage == (2 if config.method.startswith("tdpo") else 3)
    of_sepos_code = file.stem.startswith("sepo-") or file.stem.endswith("-sepo")
    assert (config.adam_beta2, config.warmup_ratio) in (
        [(0.95, 0.03)] if of_sepos_code else [(0.999, config.warmup_ratio)]
    )
    for section in (config.base, config.oracle):
        if section.path is None:
            assert section.adam_beta2 == config.adam_beta2 or section == type(section)()


def test_the_new_files_are_there() -> None:
    names = {file.stem for file in FILES}
    shallow = {
        "skywork",
        "ultrafeedback",
        "rlhflow",
        "shp",
        "helpfulness",
        "honesty",
        "instruction-following",
        "truthfulness",
    }
    expected = {f"shallow-gemma-2b-reward-{name}" for name in shallow} | {"shallow-llama3.1-8b-dpo-skywork"}
    expected |= {f"t-reg-{model}-{name}" for model in ("llama3-8b", "gemma2-9b") for name in ("tdpo1", "tdpo2", "sepo")}
    for name in ("dpo-sft", "dpo-reg-static", "dpo-reg-dpo-reward", "dpo-reg-alpha-0.25", "dpo-reg-alpha-inf"):
        expected.add(f"t-reg-llama3-8b-{name}")
    for name in ("dpo-converged", "simpo-converged", "alpha1.0", "alpha2.0", "dpo-beta0.1", "reward-beta0.1"):
        expected.add(f"tgdpo-llama3-8b-pairrm-{name}")
    policies = ("tinyllama", "pythia-2.8b", "pythia-6.9b", "llama2-7b", "llama2-13b", "llama2-13b-hh")
    expected |= {f"sepo-{policy}-{name}" for policy in policies for name in ("dpo", "ipo", "rrhf", "simpo")}
    expected.add("sepo-llama2-13b-hh")
    assert expected <= names
