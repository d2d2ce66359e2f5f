"""A stage that counts how often it is built, and can fail half way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.stages.data import Data
from pyprefopt.stages.stage import Stage
from pyprefopt.types import unkeyed

RUNTIME = configure(model="m", data="d")


@dataclass(frozen=True, kw_only=True)
class Made(Stage):
    name: str = "name"
    reads_this: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = unkeyed(None)  # a folder besides the artifact
    fails: bool = unkeyed(False)
    seconds: float = unkeyed(0.0)
    calls: list[Path] = field(default_factory=list, metadata={"keyed": False})

    def outputs(self, directory: Path) -> Sequence[Path]:
        return () if self.output is None else (self.output,)

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        self.calls.append(directory)
        time.sleep(self.seconds)
        (directory / f"file-{len(self.calls)}").write_text("content")
        if self.fails:
            raise RuntimeError("killed")
        return {"facts": {"answer": 42}, "fingerprint": "abc"}


def build_data(config: RunConfig, directory: Path) -> dict[str, Any]:
    """The stage `data` of a run, built whatever is in `directory`."""
    return Data.of(config).build(directory, config)
