"""The extension and its stub file say the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_stub_matches_the_extension():
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "pyprefopt._rust"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
