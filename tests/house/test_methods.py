"""Adding a method: one file in losses/, one line in METHODS, one YAML, one test file."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.losses.method import Need, TrainsOn, Unit
from pyprefopt.settings.resolve import configure, recipe
from tests.losses.pairs import REQUIRED, made

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_all_four(name):
    method = METHODS[name]
    assert Path(inspect.getsourcefile(method)).parent == ROOT / "pyprefopt" / "losses"
    assert (ROOT / "configs" / "method" / f"{name}.yaml").is_file()
    source = Path(inspect.getsourcefile(method))
    tests = ROOT / "tests" / "losses" / f"test_{source.stem}.py"
    assert re.search(rf"^from pyprefopt\.losses import .*\b{method.__name__}\b", tests.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_declares_what_it_needs(name):
    method = METHODS[name]
    assert is_dataclass(method)
    assert method.needs <= set(get_args(Need))
    assert made(name).unit in get_args(Unit)
    assert method.trains_on in get_args(TrainsOn)
    assert method.__doc__


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_recipe_writes_all_of_the_methods_settings_with_the_defaults(name):
    """The YAML is where people look the values up; a value there and another in the class would be two truths."""
    written = recipe("method", name).get("loss", {})
    required = REQUIRED.get(name, {})
    assert set(written) | set(required) == {f.name for f in fields(METHODS[name])}
    assert METHODS[name](**required, **written) == made(name)
    assert configure(method=name, model="m", loss=required).loss == made(name)


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_setting_without_a_published_value_is_asked_for(name):
    for setting in REQUIRED[name]:
        given = {other: value for other, value in REQUIRED[name].items() if other != setting}
        with pytest.raises(ConfigError, match=rf"loss\.{setting} must be .*; it has no default"):
            configure(method=name, model="m", loss=given)


def test_no_file_without_a_method():
    files = {folder: {file.stem for file in (ROOT / "configs" / folder).iterdir()} for folder in ("method", "embedded")}
    assert files["method"] == set(METHODS)
    assert files["embedded"] - {"default"} <= set(METHODS)


# where methods are looked up by name
SETTINGS = {"compatibility", "config", "configfile", "foreign", "options", "resolve"}


@pytest.mark.parametrize("room", ["training", "stages"])
def test_nobody_asks_for_a_methods_name(room):
    """A method declares what it needs (`needs`, `unit`, `trains_on`) and the stages provide it."""
    files = [file for file in (ROOT / "pyprefopt" / room).rglob("*.py") if file.stem not in SETTINGS]
    assert files
    for file in files:
        compared = re.findall(
            r"""method\w*\s*(?:==|!=|in|not in)\s*[\[({]*["'](\w+)""", file.read_text(encoding="utf-8")
        )
        assert not compared, f"{file}: compares the method with {compared}"
