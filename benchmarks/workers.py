"""Commands in processes of their own, so that nothing of one side's memory, caches or imports reaches another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORES = 2
Result = dict[str, Any]


def worker(*arguments: object, threads: int = CORES) -> Result:
    """Run a module of this folder on CORES cores; its last line, JSON."""
    numbers = {name: str(threads) for name in ("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS")}
    # TRL's processes take one core each
    environment = os.environ | numbers | {"PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
