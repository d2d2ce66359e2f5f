"""What a run can look at before its data is read: models, prompts and columns that settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyprefopt.data.carried import may_have
from pyprefopt.data.detect import detected
from pyprefopt.errors import ConfigError, DataError, check, did_you_mean
from pyprefopt.modeling.load import resolve_source
from pyprefopt.modeling.quantized import require_bitsandbytes
from pyprefopt.rewards import DIRECTIONS, Column, Contrastive
from pyprefopt.stages.given import given_models
from pyprefopt.stages.prepared import is_prepared

if TYPE_CHECKING:
    from pyprefopt.data.sources import Source
    from pyprefopt.stages.artifact import Artifact
    from pyprefopt.train.config import RunConfig


def check_given(config: RunConfig) -> None:
    """Look at what is named: an hour of reading data does not end in a typing error.

    Raises:
        ConfigError: a model, a prompt or an optional package is not there, or is none.
        DataError: the data has no column of rewards of that name.
    """
    for setting, path in {"model": config.model, **given_models(config)}.items():
        try:
            if path is not None:
                resolve_source(path, trust_remote_code=config.trust_remote_code)
        except ConfigError as error:
            raise (error if setting == "model" else ConfigError(f"{setting}: {error}")) from None
    if config.lora.load_in_4bit:
        require_bitsandbytes()
    provider = None if config.rewards.name is None else config.rewards.provider()
    if isinstance(provider, Contrastive):
        for direction in DIRECTIONS:
            provider.prompt(direction)
    if isinstance(provider, Column):
        for setting, path in {"data": config.data, "eval_data": config.eval_data}.items():
            if path is not None and not is_prepared(path):
                _check_column(setting, path, config.format, provider.column)


def check_excluded(config: RunConfig, data: Artifact) -> None:
    """ConfigError where `selection.excluded_ids` names a token that the tokenizer does not have."""
    size, ids = data.manifest["vocab_size"], config.selection.excluded_ids
    bad = [token for token in ids if token >= size]
    check(not bad, "selection.excluded_ids", bad, f"token ids, below {size}", "look the token up in tokenizer.json")


def _check_column(setting: str, path: str, form: str, name: str) -> None:
    """DataError unless the rows have `chosen_NAME` and `rejected_NAME`; the last rows of a text file count too."""
    from pyprefopt.data.sources import open_source

    source = open_source(path, format=form, kind="preferences")
    for side in ("chosen", "rejected"):
        if not _has(source, f"{side}_{name}"):
            pairs = _pairs(source)
            bare = name.removeprefix("chosen_").removeprefix("rejected_")
            hint = f"; did you mean '{bare}'?" if bare in pairs else did_you_mean(name, pairs)
            raise DataError(
                f"rewards.column must be the NAME of columns chosen_NAME and rejected_NAME, and {setting} '{path}' has "
                f"no '{side}_{name}', got '{name}'{hint}; set rewards.column to NAME"
            )


def _has(source: Source, field: str) -> bool:
    if source.named([field]) or any(part.columns for part in source.parts):
        return bool(source.named([field]))
    return any(may_have(block, [field]) for block in source.blocks(carry=True))


def _pairs(source: Source) -> list[str]:
    """Each NAME of which the rows have `chosen_NAME` and `rejected_NAME`."""
    names = [name for part in source.parts for name in part.columns or ()]
    names = names or detected(source.first_block.rows, [source.format])[1]
    return [name[7:] for name in names if name.startswith("chosen_") and f"rejected_{name[7:]}" in names]
