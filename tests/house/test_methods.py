"""Adding a method: one class in losses/, one line in METHODS, one YAML, one test file."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.losses.method import Method, Need, TrainsOn, Unit
from pyprefopt.settings.resolve import configure, recipe
from tests.losses.pairs import REQUIRED, made

ROOT = Path(__file__).parent.parent.parent
# Methods whose tests stand in the file of their family.
FAMILY = {
    "temporal": "d2po", "tdpo1": "tdpo", "tdpo2": "tdpo", "dpo-reg": "t_reg", "simpo-reg": "t_reg", "dpo-sft": "t_reg",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_all_four(name):
    method = METHODS[name]
    assert Path(inspect.getsourcefile(method)).parent == ROOT / "pyprefopt" / "losses"
    assert (ROOT / "configs" / "method" / f"{name}.yaml").is_file()
    tests = ROOT / "tests" / "losses" / f"test_{FAMILY.get(name, name.replace('-', '_'))}.py"
    assert re.search(rf"^from pyprefopt\.losses import .*\b{method.__name__}\b", tests.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_declares_what_it_needs(name):
    method = METHODS[name]
    assert issubclass(method, Method)
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
    assert configure(method=name, model="m", data="d", loss=required).loss == made(name)


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_setting_without_a_published_value_is_asked_for(name):
    for setting in REQUIRED[name]:
        given = {other: value for other, value in REQUIRED[name].items() if other != setting}
        with pytest.raises(ConfigError, match=rf"loss\.{setting} must be .*; it has no default"):
            configure(method=name, model="m", data="d", loss=given)


def test_no_file_without_a_method():
    files = {folder: {file.stem for file in (ROOT / "configs" / folder).iterdir()} for folder in ("method", "embedded")}
    assert files["method"] == set(METHODS)
    assert files["embedded"] - {"default"} <= set(METHODS)


@pytest.mark.parametrize("room", ["training", "stages", "pipeline"])
def test_nobody_asks_for_a_methods_name(room):
    """A method declares what it needs (`needs`, `unit`, `trains_on`) and the stages provide it."""
    files = list((ROOT / "pyprefopt" / room).rglob("*.py"))
    assert files
    for file in files:
        compared = re.findall(
            r"""method\w*\s*(?:==|!=|in|not in)\s*[\[({]*["'](\w+)""", file.read_text(encoding="utf-8")
        )
        assert not compared, f"{file}: compares the method with {compared}"


def test_what_is_asked_of_a_method_is_declared_in_the_base():
    for file in (ROOT / "pyprefopt").rglob("*.py"):
        asked = re.findall(
            r"""(?:get|has)attr\([^,"']*(?:method|METHODS|loss)\b[^,"']*,.*""", file.read_text(encoding="utf-8")
        )
        assert not asked, f"{file}: {asked}; declare it in losses.method.Method, with a default"
