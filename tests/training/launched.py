"""What test_launch.py starts through DeepSpeed's launcher: the toy at several ZeRO stages, one after another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pyprefopt import ranks

ranks.set_threads(1)

from pyprefopt.log import show_log  # noqa: E402
from pyprefopt.training.engine import close  # noqa: E402
from tests.training.ranks import train  # noqa: E402

if __name__ == "__main__":
    show_log()
    directory, cases = Path(sys.argv[-2]), json.loads(sys.argv[-1])
    for name, settings in cases.items():
        train(directory / name, **settings)
    close()
