"""`constraints.txt`: what `make` installs with, so that a fresh machine has today the versions of a green suite."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PINS = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS["dev"]]]
LEANED_ON = ("transformers", "torch", "polars", "deepspeed", "peft", "tokenizers", "numpy")


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_every_package_has_an_exact_version_that_pyproject_allows(needed):
    assert needed.specifier.contains(PINS[needed.name.lower().replace("_", "-")], prereleases=True)


def test_versions_alone():
    """No path, no host, no source but a package's name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert len(lines) > 50
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line)]


@pytest.mark.parametrize("name", LEANED_ON)
def test_the_next_major_version_is_not_taken_unseen(name):
    (needed,) = [r for r in NEEDED if r.name == name]
    assert any(part.operator == "<" for part in needed.specifier)


def test_make_installs_with_them():
    text = (ROOT / "Makefile").read_text()
    assert "CONSTRAINTS ?= constraints.txt" in text
    assert "export PIP_CONSTRAINT := $(abspath $(CONSTRAINTS))" in text
