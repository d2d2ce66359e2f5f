"""Who may import whom, and what an import loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "pyprefopt"
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command in the repository's root (or a copy of it), which its Python then imports from."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imports_of(file: Path) -> set[str]:
    """Every module that the file's code names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_import_linter():
    """The directions and quarantines of `[tool.importlinter]`."""
    done = run(LINT_IMPORTS, "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("broken", "contract"),
    [
        ("pyprefopt/losses/x.py:import pyprefopt.data", "Imports go down only"),
        ("pyprefopt/errors.py:import pyprefopt.types", "Imports go down only"),
        ("pyprefopt/training/x.py:import pyprefopt.stages", "Imports go down only"),
        ("pyprefopt/stages/x.py:import deepspeed", "DeepSpeed stays"),
        ("pyprefopt/training/x.py:def f():\n    import transformers", "transformers and PEFT stay"),
        ("pyprefopt/modeling/x.py:import bitsandbytes", "transformers and PEFT stay"),
        ("pyprefopt/data/x.py:import torch", "torch in data only in the loader"),
        ("pyprefopt/training/x.py:def f():\n    import polars", "No Polars"),
        ("pyprefopt/losses/x.py:import numpy", "Losses and rewards see torch"),
        ("pyprefopt/rewards/x.py:import polars", "Losses and rewards see torch"),
    ],
)
def test_import_linter_finds(tmp_path, broken, contract):
    """The rules bite: a skeleton of the package with one wrong import fails by the right contract."""
    for file in PACKAGE.rglob("*.py"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    name, _, code = broken.partition(":")
    (tmp_path / name).write_text(code)
    done = run(LINT_IMPORTS, "--no-cache", cwd=tmp_path)
    assert done.returncode == 1
    broken_lines = [line for line in done.stdout.splitlines() if "BROKEN" in line]
    assert len(broken_lines) == 1
    assert contract in done.stdout.split("Contracts: ")[1]


def test_a_folder_has_at_most_twelve_files():
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    counts = {folder: len([file for file in folder.glob("*.py") if file.stem != "__init__"]) for folder in folders}
    assert not {folder: count for folder, count in counts.items() if count > 12}


def test_only_native_imports_the_extension():
    wrong = [
        file.relative_to(ROOT)
        for file in PACKAGE.rglob("*.py")
        if "pyprefopt._rust" in imports_of(file) and file != PACKAGE / "data" / "_native.py"
    ]
    assert not wrong, f"go through pyprefopt.data._native: {wrong}"


def test_nothing_imports_tests_or_scripts():
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        roots = {name.split(".")[0] for name in imports_of(file)}
        assert not roots & {"tests", "scripts", "benchmarks", "trl", "datasets", "pickle"}, file


@pytest.mark.parametrize("file", sorted((ROOT / "scripts").glob("*.py")), ids=lambda file: file.name)
def test_scripts_are_thin(file):
    """A script at most reads its options and calls one function of the package."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [node.name for node in defined] in ([], ["main"])
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 40


# What must not be loaded by importing a module. The extension is needed for `data`: it is built before tests run.
LOADS = [
    ("pyprefopt", {"torch", "polars", "numpy", "yaml"}),
    ("pyprefopt.errors", {"torch", "polars", "numpy", "yaml"}),
    ("pyprefopt.types", {"torch", "polars"}),
    ("pyprefopt.cli", {"torch", "polars", "deepspeed", "transformers"}),
    ("pyprefopt.losses", {"polars", "deepspeed", "transformers", "pyarrow"}),
    ("pyprefopt.settings.resolve", {"polars", "deepspeed", "transformers", "tyro"}),
    ("pyprefopt.training.trainer", {"polars"}),
    ("pyprefopt.modeling.logps", {"polars", "deepspeed"}),
    ("pyprefopt.data", {"torch", "transformers", "deepspeed"}),
    ("pyprefopt.data.truncation.dispatch", {"torch", "transformers", "deepspeed"}),
    ("pyprefopt.data.batching.selection", {"torch", "transformers", "deepspeed"}),
    ("pyprefopt.data.store.segments", {"torch", "polars"}),
    ("pyprefopt.data.preparation.job", {"torch", "transformers", "deepspeed", "ray"}),
    ("pyprefopt.data.preparation.report", {"torch", "polars"}),
    ("pyprefopt.cli.prepare", {"torch", "polars", "pyarrow", "numpy", "tqdm"}),
]


@pytest.mark.parametrize(("module", "banned"), LOADS, ids=[module for module, _ in LOADS])
def test_what_an_import_loads(module, banned):
    if find_spec(module) is None:
        pytest.fail(f"{module} does not exist; mend this list with the package")
    loaded = set(python(f"import sys, {module}; print(*sys.modules)").split())
    assert module in loaded
    assert not loaded & banned


def test_truncate_as_users_call_it_loads_no_torch():
    """`pyprefopt.data.truncate` is the function, found through the lazy rooms."""
    code = "import sys, pyprefopt; assert callable(pyprefopt.data.truncate); print(*sys.modules)"
    assert not set(python(code).split()) & {"torch", "transformers", "deepspeed"}


def test_names_load_when_asked_for_and_train_is_a_function():
    """Whatever was imported before: no module is called as a function is."""
    code = (
        "import pyprefopt, pyprefopt.training; assert pyprefopt.train.__module__ == 'pyprefopt.pipeline.run'\n"
        "assert {'train', 'configure', 'data', 'losses', 'rewards', 'modeling'} <= set(dir(pyprefopt))\n"
        "assert all(hasattr(pyprefopt.data, name) for name in dir(pyprefopt.data)); pyprefopt.rewards.Contrastive"
    )
    python(code)


def test_import_is_quick():
    """Under 0.3 s beyond the interpreter's own start, best of 5 on a busy machine."""

    def seconds(code: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            python(code)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds("import pyprefopt") - seconds("pass") < 0.3
