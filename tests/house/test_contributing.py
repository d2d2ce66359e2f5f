"""The worked example of CONTRIBUTING, carried out to the letter on a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PARTS = {
    "pyprefopt/losses/hinge.py",
    "pyprefopt/losses/__init__.py",
    "pyprefopt/configs/method/hinge.yaml",
    "tests/losses/test_hinge.py",
    "docs/methods.md",
}
CHANGED = {"pyprefopt/losses/__init__.py", "docs/methods.md"}  # the others are new
TRAIN = """
import sys
from pathlib import Path
import pyprefopt
from tests.pipeline.runs import small, write_inputs
inputs = Path(sys.argv[1])
write_inputs(inputs)
settings = {"policy_init": "model", "base": {}, "oracle": {}, "loss": {"beta": 0.5}, "num_train_epochs": 2.0}
result = pyprefopt.train(small(inputs, inputs / "run", method="hinge", **settings))
print("losses", *result.summary["stages"]["policy"]["train_loss"])
"""


def parts() -> dict[str, str]:
    """File -> content of the block that follows its name in the section."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Adding a method")[1].split("\n## ")[0]
    blocks = re.findall(r"`([\w/.]+)`:\n\n```(?:python|diff|yaml)\n(.*?)```", section, re.DOTALL)
    assert len(re.findall("^```\\w", section, re.MULTILINE)) == len(blocks), "a block without a file's name before it"
    return dict(blocks)


def apply(diff: str, text: str) -> str:
    """`+` lines after the line that stands before them in the diff, which must be in the text once."""
    lines, place = text.splitlines(), -1
    for line in diff.splitlines():
        mark, content = line[0], line[1:]
        if mark == "+":
            place += 1
            lines.insert(place, content)
        else:
            assert mark == " "
            assert lines.count(content) == 1, f"{content!r} must stand once in the file"
            place = lines.index(content)
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the example's lines in it."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyprefopt", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "configs").symlink_to("pyprefopt/configs")
    for name, content in parts().items():
        file = copy / name
        assert file.exists() == (name in CHANGED)
        file.write_text(apply(content, file.read_text("utf-8")) if name in CHANGED else content, encoding="utf-8")
    return copy


def run(project: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_has_all_parts():
    assert set(parts()) == PARTS
    assert sum(line.startswith("+") for line in parts()["pyprefopt/losses/__init__.py"].splitlines()) == 2


def test_the_examples_tests_and_those_for_every_method_pass(project):
    files = ["tests/losses/test_hinge.py", "tests/losses/test_method.py", "tests/house/test_methods.py",
             "tests/house/test_configs.py", "tests/training/test_loss_options.py"]  # fmt: skip
    told = run(project, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "hinge")
    assert int(re.search(r"(\d+) passed", told).group(1)) >= 30


def test_the_example_is_written_as_the_rest(project):
    files = [str(project / name) for name in sorted(PARTS) if name.endswith(".py")]
    ruff = str(Path(sys.executable).parent / "ruff")
    run(project, ruff, "check", "--no-cache", *files)
    run(project, ruff, "format", "--no-cache", "--check", *files)


def test_the_example_trains(project, tmp_path):
    """At the reference every margin is 0, and the loss 1."""
    told = run(project, sys.executable, "-c", TRAIN, str(tmp_path))
    first, last = map(float, re.search(r"^losses (\S+) (\S+)$", told, re.MULTILINE).groups())
    assert first == pytest.approx(1, abs=1e-5)
    assert last < first - 0.01
