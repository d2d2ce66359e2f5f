"""pyprefopt: token-level preference optimization of language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyprefopt.pipeline.run import RunResult as RunResult
    from pyprefopt.pipeline.run import train as train
    from pyprefopt.settings.config import RunConfig as RunConfig
    from pyprefopt.settings.resolve import configure as configure
    from pyprefopt.settings.resolve import load_config as load_config
    from pyprefopt.studies.run import run_study as run_study

__version__ = "0.1.0"

# Name -> module. Loaded on first use, so that `import pyprefopt` needs neither torch nor Polars.
_LAZY = {
    "RunConfig": "pyprefopt.settings.config",
    "RunResult": "pyprefopt.pipeline.run",
    "configure": "pyprefopt.settings.resolve",
    "load_config": "pyprefopt.settings.resolve",
    "run_study": "pyprefopt.studies.run",
    "train": "pyprefopt.pipeline.run",
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
