"""Every file that a run reads, altered: its key is another. Moved, touched or written by another: it is the same."""

from __future__ import annotations

import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import pyprefopt
from pyprefopt import data
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.tokenization import tokenizer_files
from pyprefopt.losses import TGDPO
from pyprefopt.modeling import load_model, model_hash
from pyprefopt.modeling.checkpoints.save import save_policy
from pyprefopt.rewards import Contrastive
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import Data
from pyprefopt.stages.logps import Logps
from pyprefopt.stages.models import Source
from pyprefopt.stages.revision import Revision
from pyprefopt.stages.rewards import DataColumn
from pyprefopt.stages.stage import Artifact
from pyprefopt.stages.training import Training
from pyprefopt.stages.transfer import Tokens
from pyprefopt.storage.files import sha256_file
from tests.house.test_imports import ROOT
from tests.modeling.models import ARCHITECTURES, write_config
from tests.pipeline.runs import small

DATA = Artifact("data", Path("data"), {"key": "data", "reads": {"files": {"data": "f"}}}, reused=False)


@pytest.fixture
def here(inputs: Path, tmp_path: Path) -> Path:
    """The inputs of a run, to be altered."""
    copy = shutil.copytree(inputs, tmp_path / "inputs")
    config = json.loads((copy / "tokenizer" / "tokenizer_config.json").read_text())
    (copy / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (copy / "plain.jinja").write_text((copy / "tokenizer" / "chat_template.jinja").read_text())
    return copy


def data_key(directory: Path, **settings: Any) -> str:
    base = {"data": str(directory / "sft.parquet")}
    return Data.of(small(directory, directory / "run", **{"base": base, **settings})).key


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add_word(tokenizer: dict[str, Any]) -> None:
    words = tokenizer["model"]["vocab"]
    words["unheard"] = max(words.values()) + 1


def append_row(path: Path) -> None:
    frame = pl.read_parquet(path)
    pl.concat([frame, frame.head(1)]).write_parquet(path)


ALTERED: dict[str, Callable[[Path], object]] = {
    "training pairs": lambda d: append_row(d / "train.parquet"),
    "test pairs": lambda d: append_row(d / "test.parquet"),
    "instructions": lambda d: append_row(d / "sft.parquet"),
    "the tokenizer's template": lambda d: (d / "tokenizer/chat_template.jinja").open("a").write("{# another #}"),
    "the vocabulary": lambda d: edit_json(d / "tokenizer/tokenizer.json", add_word),
    "a special token": lambda d: edit_json(
        d / "tokenizer/tokenizer_config.json", lambda t: t.update(unk_token=t["eos_token"])
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ALTERED)
def test_altered_inputs_change_the_key_of_the_data(here: Path, what: str) -> None:
    before = data_key(here)
    ALTERED[what](here)
    assert data_key(here) != before


def test_settings_of_the_tokenizer_change_the_key_by_what_they_do(here: Path) -> None:
    before = data_key(here)
    assert data_key(here, chat_template="chatml") != before
    assert data_key(here, chat_template=str(here / "plain.jinja")) == before  # the tokenizer's own, in a file
    (here / "plain.jinja").open("a").write("{# another #}")
    assert data_key(here, chat_template=str(here / "plain.jinja")) != before


def test_a_model_on_the_hub_counts_by_its_content(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new revision with another template has other keys, though its name is the same."""
    monkeypatch.setattr(tokenizer_files, "resolve", lambda _: here / "tokenizer")
    before = data_key(here, tokenizer="owner/name")
    assert before == data_key(here)
    ALTERED["the tokenizer's template"](here)
    assert data_key(here, tokenizer="owner/name") != before


def test_place_and_time_change_no_key(here: Path, tmp_path: Path) -> None:
    before = data_key(here)
    for path in here.rglob("*.*"):
        os.utime(path, (1, 1))
    assert data_key(here) == before
    moved = here.rename(tmp_path / "elsewhere")
    assert data_key(moved) == before
    (moved / "train.parquet").rename(moved / "train.v2.parquet")
    assert data_key(moved, data=str(moved / "train.v2.parquet")) == before
    (moved / "tokenizer").rename(moved / "words")
    assert data_key(moved, tokenizer=str(moved / "words"), data=str(moved / "train.v2.parquet")) == before


def test_how_a_file_is_read_and_by_which_version_count(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    shutil.copy(here / "a.jsonl", here / "a.json")
    assert data_key(here, data=str(here / "a.jsonl")) != data_key(here, data=str(here / "a.json"))
    before = small(here, here / "run")
    assert Data.of(before).key != replace(Data.of(before), version="another").key
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert Data.of(before).version == pyprefopt.__version__ == project["version"]


def test_a_check_is_of_as_many_rows_as_it_takes(here: Path) -> None:
    assert data_key(here) == data_key(here, global_batch_size=8)
    assert data_key(here, check=True) != data_key(here)
    assert data_key(here, check=True) != data_key(here, check=True, global_batch_size=8)


def test_a_reward_model_reads_other_tokens(here: Path) -> None:
    plain: dict[str, Any] = {"policy_init": "model", "base": {}, "oracle": {}}
    keys = {method: data_key(here, method=method, **plain) for method in ("dpo", "ipo", "reward")}
    assert keys["dpo"] == keys["ipo"] != keys["reward"]


def test_a_reused_cache_has_the_tokens_of_todays_template(here: Path, tmp_path: Path) -> None:
    """Two runs of one cache, the tokenizer's files altered between them."""
    counts = []
    for name in ("first", "second"):
        settings: dict[str, Any] = {"policy_init": "model", "base": {}, "oracle": {}, "max_steps": 1}
        pyprefopt.train(small(here, tmp_path / name, method="dpo", cache=str(tmp_path / "cache"), **settings))
        [*made] = (tmp_path / "cache").glob("data-*")
        counts.append(len(made))
        template = here / "tokenizer" / "chat_template.jinja"
        template.write_text(template.read_text().replace("{{", "{{ '' ~ ", 1))
    assert counts == [1, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = load_model(write_config(folder / "config", ARCHITECTURES["llama"]))
    save_policy(model, folder / "policy")
    (folder / "policy" / "generation_config.json").write_text('{"eos_token_id": 1, "transformers_version": "5"}')
    (folder / "policy" / "adapter").mkdir()
    (folder / "policy" / "adapter" / "adapter_config.json").write_text('{"r": 8, "peft_version": "1"}')
    save_file({"a": torch.ones(2)}, folder / "policy" / "adapter" / "adapter_model.safetensors")
    return folder / "policy"


def alter_weight(path: Path) -> None:
    weights = load_file(path)
    first = sorted(weights)[0]
    weights[first] = weights[first].clone()
    weights[first].view(-1)[0] += 1
    save_file(weights, path, metadata={"format": "pt"})


MODEL_ALTERED: dict[str, Callable[[Path], object]] = {
    "a weight": lambda d: alter_weight(d / "model.safetensors"),
    "the configuration": lambda d: edit_json(d / "config.json", lambda c: c.update(rope_theta=5e5)),
    "how texts end": lambda d: edit_json(d / "generation_config.json", lambda c: c.update(eos_token_id=2)),
    "the adapter": lambda d: alter_weight(d / "adapter/adapter_model.safetensors"),
    "the adapter's settings": lambda d: edit_json(d / "adapter/adapter_config.json", lambda c: c.update(r=4)),
}
MODEL_KEPT: dict[str, Callable[[Path], object]] = {
    "its time": lambda d: [os.utime(path, (1, 1)) for path in d.rglob("*")],
    "the version that wrote it": lambda d: edit_json(d / "config.json", lambda c: c.update(transformers_version="9")),
    "the version of the adapter's": lambda d: edit_json(
        d / "adapter/adapter_config.json", lambda c: c.update(peft_version="9")
    ),
    "the version beside the ends": lambda d: edit_json(
        d / "generation_config.json", lambda c: c.update(transformers_version="9")
    ),
    "files of others": lambda d: (d / "README.md").write_text("x"),
    "the tokenizer beside it": lambda d: (d / "tokenizer.json").write_text("{}"),
}


def model_keys(path: Path, config: RunConfig) -> list[str]:
    """Of every stage that starts from a model."""
    source = Source.given(str(path), config)
    return [
        Logps(data=DATA, model=source).key,
        Training(
            name="policy", method=config.loss, data=DATA, start=source, optim=config, dtype="float32", lora=config.lora,
            seed=0,
        ).key,
    ]  # fmt: skip


@pytest.mark.parametrize("what", [*MODEL_ALTERED, *MODEL_KEPT])
def test_a_model_counts_by_its_content(model: Path, inputs: Path, tmp_path: Path, what: str) -> None:
    config = small(inputs, tmp_path / "run")
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "model")
    before = model_keys(model, config)
    assert model_keys(copy, config) == before
    {**MODEL_ALTERED, **MODEL_KEPT}[what](copy)
    same = [key == other for key, other in zip(before, model_keys(copy, config), strict=True)]
    assert same == [what in MODEL_KEPT] * len(before)


def test_trusted_code_counts(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / "modeling_own.py").write_text("x = 1")
    before = model_hash(copy, trust_remote_code=True)
    (copy / "modeling_own.py").write_text("x = 2")
    assert model_hash(copy, trust_remote_code=True) != before


def test_a_prompt_counts_by_its_text(tmp_path: Path) -> None:
    def key(path: Path) -> str:
        return Revision.of(Contrastive(better_prompt=str(path)), DATA, "better").key

    text = "{conversation} {answer} {start}"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(text)
    before = key(tmp_path / "a.txt")
    assert key(tmp_path / "b.txt") == before
    (tmp_path / "a.txt").write_text(f"{text} again")
    assert key(tmp_path / "a.txt") != before


def test_a_function_counts_by_its_file(inputs: Path, tmp_path: Path) -> None:
    config = small(inputs, tmp_path / "run")

    def key(path: Path) -> str:
        return Training(
            name="policy", method=TGDPO(shape=f"{path}:f"), data=DATA, start=Source("m", "m"), optim=config,
            dtype="float32", lora=config.lora, seed=0,
        ).key  # fmt: skip

    text = "def f(rewards, length, side):\n    return 1 + side * rewards\n"
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(text)
    before = key(tmp_path / "a.py")
    assert key(tmp_path / "b.py") == before
    (tmp_path / "a.py").write_text(text.replace("1 +", "2 +"))
    assert key(tmp_path / "a.py") != before


def test_a_models_own_tokenizer_counts_by_its_content(here: Path) -> None:
    def key() -> str:
        return Tokens(data=DATA, rows="r", tokenizer=data.load_tokenizer(here / "tokenizer"), model="m").key

    before = key()
    ALTERED["the tokenizer's template"](here)
    assert key() != before


def prepared_key(directory: Path, out: Path, source: str | None = None, **settings: Any) -> str:
    tokenizer = data.load_tokenizer(directory / "tokenizer")
    store = prepare(source or str(directory / "train.parquet"), tokenizer, out, on_error="skip", **settings)
    return str(store.manifest["key"])


@pytest.mark.parametrize("what", ["training pairs", "the tokenizer's template", "the vocabulary", "a special token"])
def test_altered_inputs_change_the_key_of_a_prepared_folder(here: Path, tmp_path: Path, what: str) -> None:
    before = prepared_key(here, tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    assert prepared_key(here, tmp_path / "a") == before
    ALTERED[what](here)
    assert prepared_key(here, tmp_path / "b") != before


SETTINGS: dict[str, Any] = {
    "max_prompt_tokens": 100, "prompt_overflow": "keep_end", "max_tokens": 1500, "boundary": "error", "offsets": False,
    "min_response_tokens": 4, "truncation": {"ratio": 0.5}, "columns": {"chosen": "rejected", "rejected": "chosen"},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_change_the_key_of_a_prepared_folder(here: Path, tmp_path: Path, name: str) -> None:
    assert prepared_key(here, tmp_path / "b", **{name: SETTINGS[name]}) != prepared_key(here, tmp_path / "a")


def test_the_day_counts_where_a_template_writes_it(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = here / "tokenizer" / "chat_template.jinja"
    for text, count in ((template.read_text(), 1), (template.read_text() + "{# strftime_now #}", 2)):
        template.write_text(text)
        keys = set()
        for day in ("2026-01-01", "2026-01-02"):
            with monkeypatch.context() as patch:
                patch.setattr(time, "strftime", lambda *_, day=day: day)
                keys.add(prepared_key(here, tmp_path / f"{count}-{day}"))
        assert len(keys) == count


def test_a_moved_input_is_the_same(here: Path, tmp_path: Path) -> None:
    before = prepared_key(here, tmp_path / "a")
    moved = here.rename(tmp_path / "elsewhere")
    (moved / "train.parquet").rename(moved / "pairs.v3.parquet")
    os.utime(moved / "pairs.v3.parquet", (1, 1))
    assert prepared_key(moved, tmp_path / "b", str(moved / "pairs.v3.parquet")) == before
    assert sha256_file(tmp_path / "a/segments-00000.arrow") == sha256_file(tmp_path / "b/segments-00000.arrow")


def test_of_what_the_stage_data_is_made_is_listed() -> None:
    """A field more is a flip more in this module or in test_keys."""
    assert {field.name for field in fields(Data)} == {
        "name", "label", "version", "eval_ratio", "columns", "format", "on_error", "max_prompt_tokens",
        "prompt_overflow", "max_tokens", "truncation", "tokenizer", "first", "seed", "kind", "boundary", "best",
        "files", "inputs", "score_reasoning", "min_response_tokens", "aspect", "eval_truncation",
    }  # fmt: skip


def test_what_is_made_of_texts_is_of_a_version(here: Path) -> None:
    """Models that read such tokens are keyed by the content, which another version may leave as it was."""
    tokenizer = data.load_tokenizer(here / "tokenizer")
    for stage in (
        Tokens(data=DATA, rows="r", tokenizer=tokenizer, model="m"),
        Revision.of(Contrastive(), DATA, "better"),
        DataColumn(data=DATA, rows="r", column="c"),
    ):
        assert stage.reads["version"] == pyprefopt.__version__
        assert replace(stage, version="another").key != stage.key
