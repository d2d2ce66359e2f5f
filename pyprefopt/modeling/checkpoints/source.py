"""Where a model's files are, and what they hold: from a directory, a hub name or a config.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.configuration import read_json, unreadable
from pyprefopt.modeling.checkpoints.weights import stored_tensors
from pyprefopt.storage.files import content_hash, sha256_file
from pyprefopt.storage.hub import local


def resolve_source(source: str | Path, *, trust_remote_code: bool = False, setting: str = "model") -> Path:
    """The local directory or config file of `source`; a hub name is downloaded (or found in the local cache).

    Errors name the `setting`.
    """
    path = local(source)
    try:
        if path.is_dir():
            _check_directory(path, setting)
            return path
        if path.is_file():
            if path.suffix != ".json":
                raise ConfigError(f"{setting} must be a directory, a hub name or a config.json, got {str(source)!r}")
            return path
    except OSError as error:  # a folder on the way that is closed, a name that is too long
        raise unreadable(path, error) from error
    name = str(source)
    if not _is_hub_name(name):
        raise ConfigError(
            f"{setting} must exist, got {name!r}; give a directory, a hub name (owner/name) or a config.json"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model"] + (["*.py"] if trust_remote_code else [])
    try:
        path = Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{setting} must be a local path or a model that can be reached on the hub, got {name!r}: "
            f"{type(error).__name__}; download it first and give its directory"
        ) from error
    _check_directory(path, setting)
    return path


def model_hash(source: str | Path, *, trust_remote_code: bool = False) -> str:
    """Hash what makes a model: configurations, tensors and adapter, and its code where that is trusted.

    Paths, tokenizers, other files and the versions of the libraries that wrote the configuration do not count.

    Args:
        source: as for `load_model`.
        trust_remote_code: as for `load_model`.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        ConfigError: there is no such model.

    Example:
        >>> model_hash("models/base") == model_hash("copies/base")  # doctest: +SKIP
        True
    """
    path = resolve_source(source, trust_remote_code=trust_remote_code)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _counts(p, path, trust_remote_code))
    digest = hashlib.sha256()
    for file in files:
        part = content_hash(_settings(file)) if file.name.endswith(".json") else sha256_file(file)
        name = "config.json" if path.is_file() else file.relative_to(path).as_posix()
        digest.update(f"{name} {part}\n".encode())
    return digest.hexdigest()


def find_adapter(source: str | Path) -> Path | None:
    """The folder of a LoRA adapter alone, as PEFT writes it; None where `source` is no such folder.

    Example:
        >>> find_adapter("runs/dpo/policy/adapter")  # doctest: +SKIP
        PosixPath('runs/dpo/policy/adapter')
    """
    path = local(source)
    return path if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file() else None


def adapter_hash(adapter: Path) -> str:
    """Hash what makes an adapter: its settings and its tensors."""
    files = sorted(file for file in adapter.iterdir() if file.suffix == ".safetensors")
    settings = _settings(adapter / "adapter_config.json")
    return content_hash([settings, *([file.name, sha256_file(file)] for file in files)])


def _is_hub_name(name: str) -> bool:
    """`name` or `owner/name`; anything that looks like a path is not."""
    looks_local = name.startswith((".", "~", "/")) or name.endswith((".json", ".safetensors", "/")) or "\\" in name
    return bool(name) and not looks_local and name.count("/") <= 1


def _check_directory(path: Path, setting: str) -> None:
    if (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"{setting} must be a whole model, but {str(path)!r} is a LoRA adapter; merge it into its model first"
        )
    if not (path / "config.json").is_file():
        raise ConfigError(f"{setting} must be a directory with a config.json, got {str(path)!r}")
    next(path.iterdir())  # a folder whose files cannot be listed looks empty to `glob`
    stored_tensors(path)


def _settings(file: Path) -> dict[str, Any]:
    """A config without the version of the library that wrote it."""
    return {key: value for key, value in read_json(file).items() if key not in ("transformers_version", "peft_version")}


def _counts(file: Path, root: Path, code: bool) -> bool:
    """The model's own files and those of the adapter beside it, but not, say, checkpoints in folders below."""
    if file.parent not in (root, root / "adapter"):
        return False
    return (
        file.suffix == ".safetensors"
        or file.name in ("config.json", "generation_config.json", "adapter_config.json")
        or (code and file.suffix == ".py")
    )
