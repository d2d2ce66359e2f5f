"""Every method that is shipped has a section in docs/methods.md."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pyprefopt.losses import METHODS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_a_section_with_its_settings(name):
    text = (ROOT / "docs" / "methods.md").read_text()
    sections = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    of_parents = "".join(sections.get(other, "") for other in METHODS if issubclass(METHODS[name], METHODS[other]))
    for setting in fields(METHODS[name]):
        assert f"`loss.{setting.name}" in of_parents, f"docs/methods.md, {name}: loss.{setting.name}"
    assert f"[`{name}`](#{name})" in text
