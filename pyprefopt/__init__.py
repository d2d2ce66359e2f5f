"""pyprefopt: token-level preference optimization of language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyprefopt.stages.run import RunResult as RunResult
    from pyprefopt.stages.run import train as train
    from pyprefopt.stages.study import run_study as run_study
    from pyprefopt.train.config import RunConfig as RunConfig
    from pyprefopt.train.resolve import configure as configure
    from pyprefopt.train.resolve import load_config as load_config

__version__ = "0.1.0"

# Name -> module. Loaded on first use, so that `import pyprefopt` needs neither torch nor Polars.
_LAZY = {
    "RunConfig": "pyprefopt.train.config",
    "RunResult": "pyprefopt.stages.run",
    "configure": "pyprefopt.train.resolve",
    "load_config": "pyprefopt.train.resolve",
    "run_study": "pyprefopt.stages.study",
    "train": "pyprefopt.stages.run",
}
_ROOMS = ("data", "losses", "modeling", "stages")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"pyprefopt.{name}")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pyprefopt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_ROOMS])
