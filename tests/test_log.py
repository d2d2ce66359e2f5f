"""What is told of a run: once, with its level, in `run.log` too; bars on a terminal alone."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyprefopt
from pyprefopt import log
from pyprefopt.errors import ArtifactError
from pyprefopt.log import Bar, run_log, show_log, show_seconds
from tests.pipeline.runs import small
from tests.pipeline.test_disk import largest_file

logger = logging.getLogger("pyprefopt.test")


@pytest.fixture(autouse=True)
def screen() -> Iterator[None]:
    """The screen as it was before."""
    own = logging.getLogger("pyprefopt")
    before, level = list(own.handlers), own.level
    own.handlers = [handler for handler in before if not isinstance(handler, log._Screen)]
    yield
    own.handlers, own.level = before, level


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(rank: str = "0") -> None:
    if rank == "1":
        logger.warning("part 7 is lost", extra={"own_rank": True})
    for _ in range(2):  # as two stages do
        logger.debug("why not")
        logger.info("working")
        logger.warning("%s looks odd", "row 3")
    logger.warning("a: as b", extra={"once": "as"})
    logger.warning("c: as b", extra={"once": "as"})


@pytest.mark.parametrize(
    ("level", "rank", "shown"),
    [
        ("info", "0", "working\nwarning: row 3 looks odd\nworking\nwarning: a: as b\n"),
        ("warning", "0", "warning: row 3 looks odd\nwarning: a: as b\n"),
        ("info", "1", "warning: part 7 is lost\n"),
        (
            "debug",
            "0",
            "debug: why not\nworking\nwarning: row 3 looks odd\ndebug: why not\nworking\nwarning: a: as b\n",
        ),
    ],
)
def test_the_screen(
    level: log.Level, rank: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("RANK", rank)
    show_log(level)
    with run_log(tmp_path, level):
        tell(rank)
    assert capsys.readouterr().err == shown
    kept = (tmp_path / "run.log").read_text().splitlines() if rank == "0" else []
    assert len([line for line in kept if "WARNING row 3 looks odd" in line]) == (rank == "0")
    assert bool([line for line in kept if "INFO working" in line]) == (rank == "0")
    assert bool([line for line in kept if "DEBUG why not" in line]) == (level == "debug")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ ", line) for line in kept)


def test_the_file_has_how_a_run_ended_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError), run_log(tmp_path):
        raise ArtifactError("no room")
    with run_log(tmp_path):
        pass
    ends = [line.split(" ", 2)[2] for line in (tmp_path / "run.log").read_text().splitlines()]
    begins = f"INFO pyprefopt {pyprefopt.__version__} begins"
    assert ends == [begins, "ERROR no room", begins, "INFO finished"]


def test_a_full_disk_loses_lines_and_ends_nothing(tmp_path: Path) -> None:
    with largest_file(60), run_log(tmp_path):
        tell()
    assert (tmp_path / "run.log").read_text().endswith("begins\n")


def test_a_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    show_log()
    now = [0.0]
    monkeypatch.setattr("pyprefopt.log.time.monotonic", lambda: now[0])
    with Bar("policy", 400, unit="step", done=100) as bar:
        for _ in range(300):
            now[0] += 1.0
            bar.advance(1, loss="0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0] == "policy: 160 of 400 steps, loss 0.5, 4.0 minutes left"


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_gets_a_bar_unless_it_is_turned_off(shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bar("policy", 2, unit="step", shown=shown) as bar:
        bar.advance(2)
    assert ("2/2" in terminal.getvalue()) == shown


def test_a_run_tells_each_thing_once(inputs: Path, tmp_path: Path) -> None:
    words = [
        *("train", "--method", "simpo", "--model", inputs / "config.json", "--tokenizer", inputs / "tokenizer"),
        *("--data", inputs / "train.parquet", "--output_dir", tmp_path / "run", "--max_steps", "2"),
        *("--global_batch_size", "16", "--max_tokens", "128", "--max_prompt_tokens", "64", "--eval_ratio", "0.25"),
    ]
    command = [sys.executable, "-m", "pyprefopt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    err = done.stderr
    assert "\r" not in err
    assert "not flash" not in err
    assert "MFU" not in err
    told = re.findall("^warning: .*", err, re.M)
    assert len(set(told)) == len(told)
    assert [line for line in told if "policy: " not in line] == [
        f"warning: {inputs / 'tokenizer/tokenizer.json'}: the tokenizers library makes the ids, slowly: model: type "
        '"WordLevel" is left to tokenizers',
        f"warning: {inputs / 'config.json'}: weights are random (seed 0), because only a configuration was given",
    ]
    kept = (tmp_path / "run" / "run.log").read_text()
    assert [line for line in err.splitlines() if line.partition(": ")[2] not in kept] == []
    assert kept.count(" WARNING ") == len(told)
    pyprefopt.train(small(inputs, tmp_path / "again", method="simpo", base={}, oracle={}, policy_init=None, max_steps=1,
                          log_level="debug"))  # fmt: skip
    assert "DEBUG policy: no MFU: the peak of a CPU" in (tmp_path / "again" / "run.log").read_text()


def test_times() -> None:
    shown = [show_seconds(seconds) for seconds in (7, 100, 150, 9000, 300_000)]
    assert shown == ["7 s", "100 s", "2.5 minutes", "2.5 hours", "3.5 days"]
