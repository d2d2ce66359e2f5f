"""The folder in which a command that trains nothing keeps its stages: its own, and not that of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyprefopt import ranks
from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.log import run_log
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.pipeline.overwrite import CONFIG, METRICS, POLICY, SUMMARY
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import to_yaml
from pyprefopt.storage.files import atomic_write, explaining
from pyprefopt.storage.folders import MANIFEST

OF_RUNS = (f"{POLICY}/config.json", METRICS, SUMMARY)  # what the folder of a run has, and no other


@contextmanager
def work_folder(config: RunConfig, *, setting: str = "output_dir", record: bool = True) -> Iterator[Path]:
    """Hold `config.output_dir` as a command's own folder, with its log; every rank calls this.

    Args:
        config: the command's settings.
        setting: what the user calls the folder.
        record: write the settings to config.yaml.

    Raises:
        ArtifactError: it is the folder of a run, of a model or of prepared data, or another process writes there.
    """
    folder = Path(config.output_dir)
    check_own_folder(config.output_dir, setting)
    ranks.set_threads(config.threads)
    with RunLock(folder, setting=setting), run_log(folder, config.log_level), explaining(folder):
        if record and ranks.is_main():
            atomic_write(folder / CONFIG, to_yaml(config).encode())
        yield folder


def check_own_folder(name: str | Path, setting: str) -> None:
    """Look at the folder that a command is to write, which must not be a run's, or in a run.

    Raises:
        ConfigError: no name. ArtifactError: the folder of a run, of a model or of prepared data.
    """
    if not str(name):
        raise ConfigError(f"{setting} must be a folder, got ''; name one")
    folder = Path(name)
    what = "a run" if _is_run(folder) else None
    if (folder / "config.json").exists() or (folder / MANIFEST).exists():
        what = "a model or of prepared data"
    inside = next((place for place in folder.absolute().parents if _is_run(place)), None)
    if what is None and inside is not None and folder.absolute().relative_to(inside).parts[0] in (POLICY, "stages"):
        what = f"a run ({inside})"
    if what is not None:
        raise ArtifactError(f"{setting} must not be the folder of {what}, got '{folder}'; choose another folder")


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in OF_RUNS)
