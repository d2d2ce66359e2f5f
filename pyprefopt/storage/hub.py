"""From a name or a path to a local directory."""

from __future__ import annotations

from pathlib import Path

from pyprefopt.errors import ConfigError

# Names of what ships with the package: preference data with its tokenizer, and a tiny model of random weights.
EMBEDDED_DATA, EMBEDDED_MODEL = "embedded:toy", "embedded:tiny"
EMBEDDED_RULE = "embedded:rule"  # in the place of a reward model: what the preferences of the data were made by

# A model's files without its weights: what the tokenizer and the config need.
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
ADDITIONAL_TEMPLATES = "additional_chat_templates"  # folder of a tokenizer's chat templates but the default one


def local(name_or_path: str | Path) -> Path:
    """The path that is meant; of the embedded model that of its config.json.

    Raises:
        ConfigError: a path whose bytes are no text, which no settings, manifest or tokenizer can name.
    """
    if name_or_path == EMBEDDED_MODEL:
        return Path(__file__).parents[1] / "configs" / "model" / "embedded-tiny.json"
    try:
        path = Path(name_or_path).expanduser()
    except RuntimeError as error:  # ~name of nobody here
        raise ConfigError(f"'{name_or_path}' must be a path on this machine ({error}); write it out") from None
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"paths must be written in UTF-8, got {str(path)!r}; rename that file or folder") from None
    return path


def is_bare(model: str) -> bool:
    """Whether a model is a configuration alone, with random weights and without a tokenizer."""
    return model == EMBEDDED_MODEL or model.endswith(".json")


def is_embedded(model: object, data: object) -> bool:
    """Whether a run of these is the one that ships with the package; None: what was not given is what ships."""
    return model in (None, EMBEDDED_MODEL) and data in (None, EMBEDDED_DATA)


def resolve(name_or_path: str | Path, *, files: tuple[str, ...] = SMALL_FILES) -> Path:
    """An existing path as it is; else the hub's snapshot of that name, `files` only, from the cache where it is there.

    Raises ConfigError where there is no such path and the hub does not give the name (unknown, gated, or no network).
    """
    path = local(name_or_path)
    try:
        if path.exists():
            return path
    except OSError as error:  # a folder on the way that is closed, a name that is too long
        raise ConfigError(
            f"'{name_or_path}' must be a path that can be read ({error.strerror}); change its permissions, or give "
            "another path"
        ) from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=list(files)))
    except HFValidationError:
        raise ConfigError(f"'{name_or_path}' is neither a file, nor a directory, nor a hub name (owner/name)") from None
    except Exception as error:  # the client raises many kinds: no network, no such repository, no access
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ConfigError(
            f"'{name_or_path}' is no local path, and the hub does not give it ({reason[0]}); "
            "pass a local directory, or check the name, your access and the network"
        ) from error
