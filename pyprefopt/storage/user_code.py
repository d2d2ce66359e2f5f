"""Python of the user's own, named as FILE.py:NAME: run because it was named, and keyed by the file's content."""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.storage.files import atomic_write

T = TypeVar("T")


@dataclass(frozen=True)
class Named:
    """What a file holds under a name."""

    value: Any
    file: str
    content: bytes = field(repr=False)  # of the file, as it was run
    name: str

    @property
    def identity(self) -> str:
        """What it is in a key, wherever the file stands."""
        return f"{self.name} of {hashlib.sha256(self.content).hexdigest()}"

    def copy_into(self, folder: Path) -> None:
        """Write the file as it was run, under the hash of its content."""
        sha256 = hashlib.sha256(self.content).hexdigest()
        atomic_write(folder / f"{Path(self.file).stem}-{sha256[:16]}.py", self.content)


def is_own(name: object) -> bool:
    """Whether it has the form FILE.py:NAME."""
    return isinstance(name, str) and ".py:" in name


def load_named(path: str, setting: str) -> Named:
    """Run FILE.py and take its NAME. A file whose content has been run before is not run again.

    Args:
        path: FILE.py:NAME.
        setting: which names it, for errors.

    Raises:
        ConfigError: there is no such file, it does not run, or has no such name.
    """
    file, _, name = path.rpartition(":")
    try:
        content = Path(file).expanduser().read_bytes()
    except OSError:
        raise ConfigError(
            f"{setting} must name an existing file, got '{file}' in {path!r}; write FILE.py:NAME"
        ) from None
    module = _module(file, content, f"{setting} {path!r}")
    if name not in vars(module):
        near = did_you_mean(name, [known for known in vars(module) if not known.startswith("_")])
        raise ConfigError(f"{setting} must name something of {file}, which has no '{name}'{near}")
    return Named(getattr(module, name), file, content, name)


def _module(file: str, content: bytes, what: str) -> ModuleType:
    """The module of this content, which `sys.modules` has: dataclasses and `inspect` look there."""
    title = f"_user_{hashlib.sha256(content).hexdigest()[:16]}_{Path(file).stem}"
    if title in sys.modules:
        return sys.modules[title]
    spec = spec_from_loader(title, _Content(file, content))
    assert spec is not None  # noqa: S101  (a loader is given)
    assert spec.loader is not None  # noqa: S101
    sys.modules[title] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[title]
        raise ConfigError(f"{what}: the file must run, got {in_one_line(error, file)}; mend it") from error
    return module


class _Content(SourceLoader):
    """Loads a module of this very content, and writes no compiled file beside it."""

    def __init__(self, file: str, content: bytes) -> None:
        self.file, self.content = file, content

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002
        """As in tracebacks."""
        return self.file

    def get_data(self, path: str) -> bytes:  # noqa: ARG002
        """What was read."""
        return self.content


def in_one_line(error: BaseException, file: str) -> str:
    """The error in one line, with the last line of `file` that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}" + (f" (line {line})" if line else "")


class Table(dict[str, type[T]], Generic[T]):
    """A table of the shipped classes by name; it knows those of the user's that were loaded, by FILE.py:NAME, too."""

    def __init__(
        self, shipped: Mapping[str, type[T]], *, base: Any, setting: str, check: Callable[[type[T]], str | None]
    ) -> None:
        super().__init__(shipped)
        self.base, self.setting, self._check = base, setting, check
        self.own: dict[str, type[T]] = {}  # FILE.py:NAME -> class
        self._names = {cls: name for name, cls in shipped.items()}  # class -> what it is in a key
        self._files: dict[type[T], Named] = {}

    def __missing__(self, name: str) -> type[T]:
        return self.own[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.own

    def load(self, path: str) -> type[T]:
        """Take in the class that FILE.py:NAME names, and give it; a file that has changed is run again.

        Raises:
            ConfigError: the file does not run, or NAME is no class as `base` asks for.
        """
        found = load_named(path, self.setting)
        wrong = self._wrong(found.value)
        if wrong is not None:
            raise ConfigError(f"{self.setting} {path!r}: '{found.name}' must be {wrong}")
        cls: type[T] = found.value
        self.own[path] = cls
        self._names[cls], self._files[cls] = found.identity, found
        return cls

    def _wrong(self, value: Any) -> str | None:
        """What the value must be and is not."""
        if not (isinstance(value, type) and issubclass(value, self.base)) or value is self.base:
            return f"a class derived from {self.base.__name__}"
        if "__dataclass_fields__" not in vars(value):
            return "a dataclass, or its settings are none; write @dataclass(frozen=True) above it"
        if inspect.isabstract(value):
            return f"whole; define {' and '.join(sorted(getattr(value, '__abstractmethods__', ())))} in it"
        return self._check(value)

    def identity(self, cls: type[T]) -> str:
        """What a class is in a key: its name, or of the user's its name and the hash of its file."""
        return self._names[cls]

    def file(self, cls: type[T]) -> Named | None:
        """Where a class of the user's comes from; None of a shipped one."""
        return self._files.get(cls)
