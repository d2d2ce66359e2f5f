"""Settings, the training loop, DeepSpeed, checkpoints. The room's name is a function too: `pyprefopt.train(config)`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A package that can be called: users know the run as `pyprefopt.train`, which is this room's name."""

    def __call__(self, config: Any) -> Any:
        """See `pyprefopt.stages.run.train`, found by name because rooms do not import upwards."""
        return import_module("pyprefopt.stages.run").train(config)


sys.modules[__name__].__class__ = _Room
