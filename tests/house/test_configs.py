"""Every shipped config parses, and is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pyprefopt.train.config import RunConfig
from pyprefopt.train.configfile import parse_yaml, typed
from pyprefopt.train.resolve import configure, load_config

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "pyprefopt" / "configs"
FILES = sorted(file for file in CONFIGS.rglob("*") if file.is_file())


def test_top_level_configs_is_the_packages_folder():
    """One set of files: the package's (so that wheels have them), shown at the top level where people look."""
    assert (ROOT / "configs").resolve() == CONFIGS


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_config_parses(file):
    kind = file.relative_to(CONFIGS).parts[0]
    text = file.read_text(encoding="utf-8")
    if kind in ("method", "embedded"):
        settings = parse_yaml(text, str(file))
        assert "method" not in settings  # the file's name says it
        typed(RunConfig, settings, "dpo" if file.stem == "default" else file.stem)
    elif kind == "paper":
        load_config(file)
    elif kind == "model":
        from transformers import AutoConfig

        settings = json.loads(text)
        config = AutoConfig.for_model(**settings)
        assert not set(settings) - set(config.to_dict()), "settings that the architecture does not know"
    elif kind == "deepspeed":
        from pyprefopt.train.engine import deepspeed_config

        settings = json.loads(text)
        stage = settings.get("zero_optimization", {}).get("stage", "auto")
        stage = 2 if stage == "auto" else stage
        run = configure(deepspeed=str(file), zero_stage=stage)
        merged = deepspeed_config(run, run)
        assert merged["zero_optimization"]["stage"] == stage
        offloads = settings["zero_optimization"].get("offload_optimizer")
        assert merged["zero_optimization"].get("offload_optimizer") == offloads
    else:
        pytest.fail(f"{file}: say here how {kind} files are checked")


def test_pre_commit_runs_what_is_installed():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert hooks
    assert {hook["language"] for hook in hooks} == {"system"}
