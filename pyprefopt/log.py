"""What is told of a run: on the screen, with progress bars, and in its file `run.log`; a warning once, by rank 0."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from pyprefopt.ranks import is_main
from pyprefopt.storage.files import append
from pyprefopt.version import __version__

Level = Literal["debug", "info", "warning", "error"]
RUN_LOG = "run.log"
EVERY = 60.0  # seconds between two lines of progress, where no bar is drawn

logger = logging.getLogger("pyprefopt")


class _Once(logging.Filter):
    """Lets a warning pass once: by its text, or by what it gives as `once` in `extra`."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        text = getattr(record, "once", None) or record.getMessage()
        new = text not in self._seen
        self._seen.add(text)
        return new


def _of_this_rank(record: logging.LogRecord) -> bool:
    """Whether rank 0 does not tell the same: it is rank 0, an error, or marked by `own_rank` in `extra`."""
    return is_main() or record.levelno >= logging.ERROR or getattr(record, "own_rank", False)


class _Screen(logging.StreamHandler[TextIO]):
    """Lines above a progress bar, not behind it; all but information begin with their level."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(_Once())
        self.addFilter(_of_this_rank)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A terminal that takes no more ends no run."""


class _File(logging.Handler):
    """Appends each record with its time and level; a disk that is full loses it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.addFilter(_Once())
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            append(self.path, f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except OSError:
            return


def show_log(level: Level = "info") -> None:
    """Show on the screen what is logged from this level on; of other ranks than 0 errors, and what concerns them alone.

    What libraries log and warn of is shown with debug alone.
    """
    shown = _number(level)
    screen = next((handler for handler in logger.handlers if isinstance(handler, _Screen)), None)
    if screen is None:
        screen = _Screen()
        logger.addHandler(screen)
    screen.setLevel(shown if is_main() else logging.WARNING)
    logger.setLevel(shown)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if level == "debug" else "error")
    if level != "debug":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too
        if not sys.warnoptions:  # the user's own word counts
            warnings.simplefilter("ignore")


@contextmanager
def run_log(directory: str | Path, level: Level = "info") -> Iterator[None]:
    """While inside, rank 0 keeps what is logged in `directory/run.log`: information at least, and how it ended."""
    before, kept = logger.level, min(_number(level), logging.INFO)
    if not is_main():
        yield
        return
    logger.setLevel(kept)
    file = _File(Path(directory) / RUN_LOG)
    logger.addHandler(file)
    try:
        file.handle(_record(logging.INFO, f"pyprefopt {__version__} begins"))
        yield
        file.handle(_record(logging.INFO, "finished"))
    except BaseException as error:
        file.handle(_record(logging.ERROR, str(error) or type(error).__name__))
        raise
    finally:
        logger.removeHandler(file)
        logger.setLevel(before)


@contextmanager
def only_warnings(but_of: str) -> Iterator[None]:
    """While inside, nothing is told but warnings and errors, unless in debug, and of these none that has this text."""

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING and but_of not in record.getMessage()

    handlers = [] if logger.isEnabledFor(logging.DEBUG) else list(logger.handlers)
    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("pyprefopt", level, "", 0, text, None, None)


def _number(level: Level) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class Bar:
    """How far something is: a bar on a terminal; elsewhere a line in the log, once a minute at most.

    >>> with Bar("score", total=10, unit="part") as bar:  # doctest: +SKIP
    ...     bar.advance(1, speed="3 a second")
    """

    def __init__(
        self, title: str, total: int | None = None, *, unit: str = "", done: int = 0, shown: bool = True
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._began = self._told = time.monotonic()
        self._first, self._values = done, dict[str, str]()
        self._bar: Any = None
        self._shown = shown and is_main()
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=title, total=total, initial=done, unit=unit, mininterval=0.5, dynamic_ncols=True,
                unit_scale=unit == "byte",
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, steps: int, **values: str) -> None:
        """Count further steps; `values` are shown behind the bar from now on."""
        self.done += steps
        self._values |= values
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix(self._values, refresh=False)
            self._bar.update(steps)
        elif self._shown and time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """Where it stands, in words."""
        of = f" of {self.total:,}" if self.total is not None else ""
        parts = [f"{self.title}: {self.done:,}{of} {self.unit}s", *(f"{n} {v}" for n, v in self._values.items())]
        made = self.done - self._first
        if self.total is not None and made:
            left = (time.monotonic() - self._began) / made * (self.total - self.done)
            parts.append(f"{show_seconds(left)} left")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def show_seconds(seconds: float) -> str:
    """A time as people write it.

    >>> show_seconds(7), show_seconds(150), show_seconds(9000), show_seconds(300_000)
    ('7 s', '2.5 minutes', '2.5 hours', '3.5 days')
    """
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
