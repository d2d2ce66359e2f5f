"""Adding a method: one file in losses/, one line in METHODS, one YAML, one test file."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

from pyprefopt.losses import METHODS
from pyprefopt.losses.method import Need, TrainsOn, Unit
from pyprefopt.train.resolve import configure, recipe

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_all_four(name):
    method = METHODS[name]
    assert Path(inspect.getsourcefile(method)).parent == ROOT / "pyprefopt" / "losses"
    assert (ROOT / "configs" / "method" / f"{name}.yaml").is_file()
    assert (ROOT / "configs" / "embedded" / f"{name}.yaml").is_file()
    tests = ROOT / "tests" / "losses" / f"test_{name}.py"
    assert f"import {method.__name__}" in tests.read_text() or f", {method.__name__}" in tests.read_text()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_declares_what_it_needs(name):
    method = METHODS[name]
    assert is_dataclass(method)
    assert method.needs <= set(get_args(Need))
    assert method().unit in get_args(Unit)
    assert method.trains_on in get_args(TrainsOn)
    assert method.__doc__


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_recipe_writes_all_of_the_methods_settings_with_the_defaults(name):
    """The YAML is where people look the values up; a value there and another in the class would be two truths."""
    written = recipe("method", name)["loss"]
    assert set(written) == {f.name for f in fields(METHODS[name])}
    assert METHODS[name](**written) == METHODS[name]()
    assert configure(method=name, model="m").loss == METHODS[name]()


def test_no_file_without_a_method():
    for folder in ("method", "embedded"):
        assert {file.stem for file in (ROOT / "configs" / folder).iterdir()} == set(METHODS)


# where methods are looked up by name
SETTINGS = {"compatibility", "config", "configfile", "foreign", "options", "resolve"}


@pytest.mark.parametrize("room", ["train", "stages"])
def test_nobody_asks_for_a_methods_name(room):
    """A method declares what it needs (`needs`, `unit`, `trains_on`) and the stages provide it."""
    files = [file for file in (ROOT / "pyprefopt" / room).rglob("*.py") if file.stem not in SETTINGS]
    assert files
    for file in files:
        compared = re.findall(
            r"""method\w*\s*(?:==|!=|in|not in)\s*[\[({]*["'](\w+)""", file.read_text(encoding="utf-8")
        )
        assert not compared, f"{file}: compares the method with {compared}"
