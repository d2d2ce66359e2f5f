"""`check_method`: a loss or a provider of token rewards is tried, of the user's own or ours."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.errors import ConfigError, PyprefoptError, did_you_mean
from pyprefopt.losses import METHODS, Method
from pyprefopt.pipeline.trials.methods import method_checks
from pyprefopt.pipeline.trials.providers import provider_checks
from pyprefopt.pipeline.trials.rows import SHAPES, Differs
from pyprefopt.rewards import REWARDS, Reward, load_provider
from pyprefopt.storage.user_code import Named, in_one_line, is_own

if TYPE_CHECKING:
    from pyprefopt.settings.config import RunConfig

WIDTH = 36  # of a check's name

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    passed: bool
    said: str  # what was seen, or what differs


@dataclass(frozen=True)
class Report:
    """What was tried of a method or a provider."""

    title: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        """Those that found something."""
        return [check for check in self.checks if not check.passed]

    def __str__(self) -> str:
        lines = [f"  {c.name:{WIDTH}}{'ok' if c.passed else 'FAILED':8}{c.said}".rstrip() for c in self.checks]
        good = len(self.checks) - len(self.failed)
        return "\n".join([self.title, *lines, f"{good} of {len(self.checks)} checks passed"])


def check_method(name: str | Method | Reward, **settings: Any) -> Report:
    """Try what must hold of every method and of every provider of token rewards.

    Of a method: shapes, the gradient against finite differences in float64, that a row's loss does not depend on what
    it is packed with, on its layout or its place, that tokens without weight change nothing, and that edges give finite
    numbers. Of a provider: shapes, that a response's rewards do not depend on the others, and edges.

    Args:
        name: FILE.py:NAME, the name of one that ships, or an instance.
        **settings: of the method or provider, where `name` is no instance.

    Returns:
        The checks, whose text is a table; `failed` are those that found something.

    Raises:
        ConfigError: the file does not run, or has no such class; or settings that break their rules.

    Example:
        >>> check_method("dpo", beta=0.5).failed
        []
    """
    made = name if isinstance(name, Method | Reward) else _make(find_class(name), settings)
    own = _file(made)
    said = f"{name}: {made}" if isinstance(name, str) else str(made)
    tried = method_checks(made) if isinstance(made, Method) else provider_checks(made)
    checks = [_tried(title, function, "" if own is None else own.file) for title, function in tried]
    return Report(said, tuple(checks))


@dataclass(frozen=True)
class Own:
    """A run's method and provider that are the user's own, tried."""

    files: list[Named]  # that they come from
    found: list[str]  # what differs, in a sentence each

    def warn(self) -> None:
        """Warn of what differs."""
        if ranks.is_main():
            for sentence in self.found:
                logger.warning("%s (pyprefopt check-method)", sentence)


def check_own(config: RunConfig) -> Own:
    """Try the method and the provider of a run that are the user's own.

    Raises:
        ConfigError: what they give has another shape than is read.
    """
    files, found = [], []
    for name, made in ((config.method, config.loss), (config.rewards.name, config.rewards)):
        file = _file(made)
        if file is None:
            continue
        files.append(file)
        for check in check_method(made).failed:  # type: ignore[arg-type]
            if check.name == SHAPES:
                raise ConfigError(f"{name}: {check.said}; pyprefopt check-method {name} tries it")
            found.append(f"{name}, {check.name}: {check.said}")
    return Own(files, found)


def _file(made: object) -> Named | None:
    """Where a method or provider comes from that is the user's own."""
    kind: Any = type(made)
    return METHODS.file(kind) or REWARDS.file(kind)


def _make(cls: type[Method] | type[Reward], settings: dict[str, Any]) -> Method | Reward:
    """An instance; ConfigError for a setting that it does not have, or that must be given."""
    section = "loss" if issubclass(cls, Method) else "rewards"
    known = {f.name: f for f in fields(cls) if f.init}
    for name in settings:
        if name not in known:
            raise ConfigError(f"unknown setting '{section}.{name}'{did_you_mean(name, known)}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in settings:
            raise ConfigError(f"{section}.{name} must be given to {cls.__name__}, which has no default for it")
    return cls(**settings)


def find_class(name: str) -> type[Method] | type[Reward]:
    """The class of a name that ships, or of FILE.py:NAME."""
    if not is_own(name):
        if name not in METHODS and name not in REWARDS:
            known = ", ".join([*METHODS, *REWARDS])
            raise ConfigError(f"check-method takes FILE.py:NAME, or one of {known}, got {name!r}")
        return METHODS[name] if name in METHODS else REWARDS[name]
    try:
        return METHODS.load(name)
    except ConfigError as error:
        if "derived from Method" not in str(error):
            raise
    try:
        return load_provider(name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("derived from Reward", "derived from Method or Reward")) from None


def _tried(name: str, function: Callable[[], str], file: str) -> Check:
    """The outcome of one check; whatever the user's code raises is what it found."""
    try:
        return Check(name, True, function())
    except Differs as found:
        return Check(name, False, str(found))
    except PyprefoptError as error:
        return Check(name, False, str(error))
    except Exception as error:
        return Check(name, False, in_one_line(error, file))
