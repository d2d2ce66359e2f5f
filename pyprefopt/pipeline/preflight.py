"""What a run looks at before it makes anything: models, prompts and columns that settings name, and then the data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyprefopt import ranks
from pyprefopt.data.reading.extra_columns import named_in_any_row
from pyprefopt.data.reading.formats import detected
from pyprefopt.errors import ConfigError, DataError, check, did_you_mean
from pyprefopt.modeling.attention.backends import check_here
from pyprefopt.modeling.checkpoints.adapters import add_lora
from pyprefopt.modeling.checkpoints.configuration import check_memory, read_config
from pyprefopt.modeling.checkpoints.load import Head, sketch_model
from pyprefopt.modeling.checkpoints.quantized import require_bitsandbytes
from pyprefopt.modeling.checkpoints.save import rehearse_saving
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.modeling.head.choice import check_kernel
from pyprefopt.modeling.logps import LogpsModel
from pyprefopt.modeling.reward_head import RewardModel
from pyprefopt.rewards import DIRECTIONS, Column, Contrastive, Reward
from pyprefopt.settings.rules import compares_oracle, oracle_starts_from, trains_oracle
from pyprefopt.stages.data import tokenizer_source
from pyprefopt.stages.models import check_vocabulary
from pyprefopt.stages.sources import NamedSource, named_sources
from pyprefopt.stages.transfer import own_tokenizer
from pyprefopt.storage.hub import is_bare, local

if TYPE_CHECKING:
    from pyprefopt.data.reading.sources import Source
    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.losses import Method
    from pyprefopt.settings.config import RunConfig
    from pyprefopt.stages.stage import Artifact

_SIZES = ("hidden_size", "num_hidden_layers")  # that training changes in no model

logger = logging.getLogger("pyprefopt")


def of_one_vocabulary(config: RunConfig) -> set[str]:
    """Settings that name models which must read the policy's token ids: they are trained further, or read revisions."""
    settings = {"rewards.model"}
    if isinstance(config.rewards, Contrastive):
        settings.add(f"{config.rewards.model}.path")  # of the base or the oracle, by name
    return settings | ({"base.path"} if config.policy_init == "base" or trains_oracle(config) else set())


def given_models(config: RunConfig) -> dict[str, str]:
    """Ready checkpoints beside the model, by the setting that names them."""
    given = {"base.path": config.base.path, "oracle.path": config.oracle.path}
    given |= {f"rewards.{name}": path for name, path in config.rewards.checkpoints.items()}
    return {setting: path for setting, path in given.items() if path is not None}


def check_given(config: RunConfig) -> None:
    """Look at what is named: an hour of reading data does not end in a typing error.

    Raises:
        ConfigError: a model, a prompt or an optional package is not there, or is none.
        DataError: the data has no column of rewards of that name.
    """
    for setting, path in {"model": config.model, **given_models(config)}.items():
        with _naming(setting):
            if path is not None:
                resolve_source(path, trust_remote_code=config.trust_remote_code)
    check_here(config.attention)
    check_kernel(config.head_kernel)
    if config.lora.load_in_4bit:
        require_bitsandbytes()
    tokenizer_source(config)
    for setting, path in given_models(config).items():
        with _naming(setting):
            _sketch(config, path, trained=setting == "base.path" and setting in of_one_vocabulary(config))
    _check_oracle(config)
    provider = config.rewards
    if isinstance(provider, Contrastive):
        for direction in DIRECTIONS:
            provider.prompt(direction)
    if isinstance(provider, Column):
        for source in named_sources(config).values():
            if source.kind == "preferences":
                _check_column(source, provider.column)


def _check_oracle(config: RunConfig) -> None:
    """Log what a ready oracle is read against where no base says it; ConfigError where it cannot come from that."""
    if config.oracle.path is None or not _against_model(config):
        return
    oracle, model = (_architecture(config, path) for path in (config.oracle.path, config.model))
    if oracle != model:
        raise ConfigError(
            f"oracle.path {config.oracle.path} ({oracle}) was not trained from model {config.model} ({model}), so that "
            "the difference of their log-probs is no token score; set base.path to the model that the oracle was "
            "trained from"
        )
    if ranks.is_main():
        logger.info(
            "tokens are scored by oracle.path %s against model %s: without base.path, that is taken as what the oracle "
            "was trained from", config.oracle.path, config.model,
        )  # fmt: skip


def describe_scores(config: RunConfig) -> str | None:
    """What the tokens of a run are scored by, and against what; None where no oracle is read against its beginning."""
    if not (trains_oracle(config) or compares_oracle(config)):
        return None
    against = f"model {config.model}" if oracle_starts_from(config) == "model" else "the base that is trained"
    if oracle_starts_from(config) == "base" and config.base.path is not None:
        against = f"base.path {config.base.path}"
    oracle = "an oracle that is trained from it" if config.oracle.path is None else f"oracle.path {config.oracle.path}"
    return f"tokens are scored by {oracle}, against {against}"


def _against_model(config: RunConfig) -> bool:
    """Whether an oracle's log-probs are read against the model's."""
    return compares_oracle(config) and oracle_starts_from(config) == "model"


def _architecture(config: RunConfig, path: str) -> str:
    """What training leaves as it is: kind, width and depth of a model, in words."""
    resolved = resolve_source(path, trust_remote_code=config.trust_remote_code)
    read = read_config(resolved, trust_remote_code=config.trust_remote_code)
    text = read.get_text_config()
    sizes = [f"{name} {value}" for name in _SIZES if (value := getattr(text, name, None)) is not None]
    return ", ".join([read.model_type, *sizes])


def check_start(config: RunConfig) -> None:
    """Look at the architecture of the model that training starts from, as it will be trained, without its weights.

    Raises:
        ConfigError: it is refused, or something that `lora` asks of it.
    """
    if config.policy_init == "base" and config.base.path is not None:
        return  # `model` brings the tokenizer alone
    head: Head = "reward" if "reward_head" in config.loss.needs else "language"
    if config.model is not None:
        _sketch(config, config.model, trained=True, head=head)


def _sketch(config: RunConfig, path: str, *, trained: bool, head: Head = "language") -> None:
    """ConfigError for what `load_model` and the engine around it would refuse of a model, whatever its weights."""
    in_4bit = trained and config.lora.load_in_4bit
    try:
        model = sketch_model(
            path,
            trust_remote_code=config.trust_remote_code,
            load_in_4bit=in_4bit,
            head=head,
            attention=config.attention,
        )
        (RewardModel if head == "reward" else LogpsModel)(model, probe=False)
        if is_bare(path) and not config.check:  # which may look at what another machine will run
            check_memory(model, local(path))
        if trained and config.lora.r > 0:
            add_lora(model, config.lora)
        if trained and ranks.is_main():  # transformers saves on no other, once ranks can talk
            rehearse_saving(
                path, dtype=config.dtype, lora=config.lora if config.lora.r > 0 else None, load_in_4bit=in_4bit,
                head=head, trust_remote_code=config.trust_remote_code,
            )  # fmt: skip
    except ConfigError:
        raise
    except Exception as error:  # code that cannot do without numbers: it is looked at when it has them
        logger.debug("%s was not looked at early: %s: %s", path, type(error).__name__, error)


@contextmanager
def _naming(setting: str) -> Iterator[None]:
    """While inside, errors name the setting that gives the model."""
    try:
        yield
    except ConfigError as error:
        raise (error if setting == "model" else ConfigError(f"{setting}: {error}")) from None


def check_excluded(config: RunConfig, data: Artifact) -> None:
    """ConfigError where `selection.excluded_ids` names a token that the tokenizer does not have."""
    size, ids = data.manifest["vocab_size"], config.selection.excluded_ids
    bad = [token for token in ids if token >= size]
    check(not bad, "selection.excluded_ids", bad, f"token ids, below {size}", "look the token up in tokenizer.json")


def check_tokenizers(config: RunConfig, data: Artifact) -> dict[str, Tokenizer | None]:
    """Look at the tokenizers of ready checkpoints: path -> its own, or None where it reads the policy's token ids.

    Raises:
        ConfigError: a model that must read the policy's token ids does not.
    """
    own: dict[str, Tokenizer | None] = {}
    for setting, path in given_models(config).items():
        if setting in of_one_vocabulary(config):
            check_vocabulary(setting, path, data)
        else:  # it scores only
            own[path] = own_tokenizer(path, data)
            if setting == "oracle.path" and own[path] is not None and _against_model(config):
                raise ConfigError(
                    f"oracle.path {path} has another tokenizer than model {config.model}, from which it was not "
                    "trained then; set base.path to the model that the oracle was trained from"
                )
    return own


def check_user_weights(method: Method, data: Artifact) -> None:
    """ConfigError where the data brings weights of tokens, and the method weighs none."""
    if data.manifest.get("weights") and "reward_head" in method.needs:
        raise ConfigError(
            f"data brings weights of tokens ({', '.join(data.manifest['weights'])}), but {type(method).__name__} "
            "scores whole responses and weighs no token; leave chosen_weights and rejected_weights out of the data"
        )


def log_reward_strength(config: RunConfig) -> None:
    """Log the one number that decides how much token rewards count, where the method multiplies them by a factor."""
    factor = config.loss.reward_factor
    if factor is None or not isinstance(config.rewards, Reward):
        return
    scale = config.rewards.beta
    if config.rewards.transform == "raw":
        logger.info(
            "policy: the token rewards count loss.alpha * rewards.beta = %g * %g = %g; only the product matters",
            factor, scale, factor * scale,
        )  # fmt: skip
    else:
        logger.info(
            "policy: the token rewards count loss.alpha = %g; rewards.beta = %g is inside the sigmoid", factor, scale
        )


def _check_column(source: NamedSource, name: str) -> None:
    """DataError unless the rows have `chosen_NAME` and `rejected_NAME`; the last rows of a text file count too."""
    wanted = [f"chosen_{name}", f"rejected_{name}"]
    missing = [field for field in wanted if field not in named_in_any_row(source.rows, wanted)]
    if missing:
        pairs = _pairs(source.rows)
        bare = name.removeprefix("chosen_").removeprefix("rejected_")
        hint = f"; did you mean '{bare}'?" if bare in pairs else did_you_mean(name, pairs)
        raise DataError(
            f"rewards.column must be the NAME of columns chosen_NAME and rejected_NAME, and {source.setting} "
            f"'{source.path}' has no '{missing[0]}', got '{name}'{hint}; set rewards.column to NAME"
        )


def _pairs(source: Source) -> list[str]:
    """Each NAME of which the rows have `chosen_NAME` and `rejected_NAME`."""
    names = [name for part in source.parts for name in part.columns or ()]
    names = names or detected(source.first_block.rows, [source.format])[1]
    return [name[7:] for name in names if name.startswith("chosen_") and f"rejected_{name[7:]}" in names]
