"""The extension and its stub file say the same."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_extension_and_stub_exist():
    """stubtest calls a module that is not there a success."""
    extension = import_module("pyprefopt._rust")
    assert Path(extension.__file__).parent == ROOT / "pyprefopt", "built elsewhere: run maturin develop here"
    assert (ROOT / "pyprefopt" / "_rust.pyi").is_file()


def test_stub_matches_the_extension(tmp_path):
    """In a folder of its own: inside the package, stubtest would type-check all of pyprefopt and torch as well."""
    extension = Path(import_module("pyprefopt._rust").__file__)
    (tmp_path / extension.name).symlink_to(extension)
    (tmp_path / "_rust.pyi").write_text((ROOT / "pyprefopt" / "_rust.pyi").read_text())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MYPYPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "_rust"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
