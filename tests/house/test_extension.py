"""The extension and its stub file say the same."""

from __future__ import annotations

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


def test_stub_matches_the_extension():
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "pyprefopt._rust"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
