"""The command line: every option through the real launcher, help, errors in one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from pyprefopt import cli
from pyprefopt.cli import prepare
from pyprefopt.cli.main import COMMANDS
from pyprefopt.cli.options import parse_args, read_given
from pyprefopt.data.reading.catalog import names_of
from pyprefopt.errors import ArtifactError, ConfigError, DataError
from pyprefopt.losses import METHODS
from pyprefopt.rewards import REWARDS
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure, to_yaml
from pyprefopt.settings.typed import dotted_names, parse_yaml
from pyprefopt.version import __version__
from tests.data.prepared import row, write_pairs, write_tokenizer

ROOT = Path(__file__).parent.parent


def another_value(hint: object) -> object:
    """A value that no default has and that every rule about one setting allows."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if get_origin(hint) is Literal:
        return get_args(hint)[-1]
    if get_origin(hint) is tuple:
        return ["first", "second"] if get_args(hint)[0] is str else [7, 8]
    if get_origin(kinds[0]) is Literal:
        return get_args(kinds[0])[-1]
    return {int: 4321, float: 0.4321, bool: True, str: "some text"}[kinds[0]]


def words_of(name: str, value: object) -> list[str]:
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def at(config: object, dotted: str) -> object:
    for part in dotted.split("."):
        config = getattr(config, part)
    return list(config) if isinstance(config, tuple) else config


def every_option() -> list[tuple[str, object]]:
    special = {
        "method": "dpo", "max_tokens": 9999, "loss.label_smoothing": 0.25, "oracle.loss.label_smoothing": 0.25,
        "rewards.column": "some_name", "format": "hh", "columns": ["prompt=question", "chosen=good"],
        "eval_truncation": ["none", "same"],
    }  # fmt: skip
    return [(name, special.get(name, another_value(hint))) for name, hint in dotted_names(RunConfig, "dpo")]


def together(provider: str) -> list[tuple[str, object]]:
    """The options that a run with these token rewards may have at once."""
    own = {f"rewards.{f.name}" for f in fields(REWARDS[provider])}
    fit = [(name, value) for name, value in every_option() if not name.startswith("rewards.") or name in own]
    return [
        (name, provider if name == "rewards.name" else value)
        for name, value in fit
        if name not in ("truncation.tokens", "truncation.length")  # exclude truncation.ratio
    ]


@pytest.fixture
def no_rules(monkeypatch):
    """Options for themselves, whatever they mean together."""
    monkeypatch.setattr("pyprefopt.settings.resolve.check_compatible", lambda config: None)


@pytest.mark.parametrize("provider", sorted(REWARDS))
@pytest.mark.parametrize("spelling", ["--name value", "--name=value", "--name-with-dashes value"])
def test_all_options_at_once(no_rules, spelling, provider):
    words: list[str] = []
    options = together(provider)
    for name, value in options:
        option = words_of(name, value)
        if spelling == "--name=value" and len(option) == 2:
            option = ["=".join(option)]
        if spelling == "--name-with-dashes value":
            option[0] = "--" + option[0][2:].replace("_", "-")
        words += option
    config = parse_args(words)
    for name, value in options:
        assert at(config, name) == value, name


@pytest.mark.parametrize("option", every_option(), ids=lambda option: option[0])
def test_each_option_passes_the_launchers_parser(option):
    """DeepSpeed's launcher must not take our options for (abbreviations of) its own."""
    from deepspeed.launcher import launch, runner

    words = ["scripts/train.py", *words_of(*option)]
    assert runner.parse_args(words).user_args == words[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch", *words])
        assert launch.parse_args().training_script_args == words[1:]


def test_every_option_through_the_real_launcher(tmp_path):
    """`deepspeed SCRIPT` with every option at once; the script writes what it understood, no rules between them."""
    options = together("contrastive")
    script = tmp_path / "echo.py"
    script.write_text(
        "import sys\nfrom pyprefopt.cli.options import parse_args\nfrom pyprefopt.settings import resolve\n"
        "resolve.check_compatible = lambda config: None\n"
        f"open({str(tmp_path / 'got.yaml')!r}, 'w').write(resolve.to_yaml(parse_args(sys.argv[1:])))\n"
    )
    words = [word for option in options for word in words_of(*option)]
    command = [Path(sys.executable).parent / "deepspeed", "--num_gpus", "1", script, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    got = parse_yaml((tmp_path / "got.yaml").read_text())
    for name, value in options:
        found = got
        for part in name.split("."):
            found = found[part]
        assert found == value, name


def test_aliases_and_launcher_words():
    config = parse_args(["--local_rank=1", "--base", "b", "--oracle=o", "--local-rank", "0"])
    assert (config.base.path, config.oracle.path) == ("b", "o")
    assert config == parse_args(["--base.path", "b", "--oracle.path", "o"])


@pytest.mark.parametrize(
    ("words", "value"), [(["--check"], True), (["--check", "True"], True), (["--check=False"], False)]
)
def test_booleans(words, value):
    assert parse_args(words).check is value
    assert parse_args([*words, "--seed", "3"]).seed == 3


def test_negative_numbers_empty_texts_and_none():
    config = parse_args(["--max_steps", "-1", "--output_dir", "", "--model", "None"])
    assert (config.max_steps, config.output_dir, config.model) == (-1, "", "embedded:tiny")
    assert parse_args(["--lora.r", "8", "--lora.target_modules"]).lora.target_modules == ()


def test_the_last_of_repeated_options_wins():
    assert parse_args(["--seed", "1", "--seed", "2"]).seed == 2


def test_precedence(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: dpo\nlearning_rate: 3.0e-4\nseed: 5\nloss: {beta: 0.2, label_smoothing: 0.1}\n")
    config = parse_args(["--config", str(file), "--learning_rate", "1e-3", "--loss.beta", "0.3"])
    assert config == configure(method="dpo", learning_rate=1e-3, seed=5, loss={"beta": 0.3, "label_smoothing": 0.1})


def test_no_intermediate_layer_is_judged(tmp_path):
    """The file alone would break a rule; with the command line it does not."""
    file = tmp_path / "run.yaml"
    file.write_text("max_tokens: 100\ndtype: bfloat16\n")
    with pytest.raises(ConfigError, match="max_tokens must be > max_prompt_tokens"):
        parse_args(["--config", str(file)])
    config = parse_args(["--config", str(file), "--max_prompt_tokens", "50", "--zero_stage", "1"])
    assert (config.max_tokens, config.dtype) == (100, "bfloat16")


def test_errors_in_a_file_are_found_first(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: fast\n")
    with pytest.raises(ConfigError, match="learning_rate must be a number, got 'fast'"):
        parse_args(["--config", str(file)])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_resolved_config_file_gives_the_same_run(tmp_path, method):
    config = parse_args(["--method", method, "--seed", "7"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert parse_args(["--config", str(file)]) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learnin_rate", "1"], "unknown setting 'learnin_rate'; did you mean 'learning_rate'?"),
        (["--learning_rate", "fast"], "learning_rate must be a number, got 'fast'"),
        (["--dtype", "float16"], "dtype must be one of 'float32', 'bfloat16', got 'float16'"),
        (["--learning_rate", "-1"], "learning_rate must be > 0, got -1.0"),
        (["--model", "a", "b"], "model must have one value, got ['a', 'b']"),
        (["--data"], "data must be a file, or a list of files, got []"),
        (["--columns", "prompt"], "columns must be ours=yours, got 'prompt'"),
        (["--check", "maybe"], "'maybe'"),
        (["train", "now"], "unexpected argument 'now'"),
        (
            ["trian"],
            f"unknown command 'trian'; did you mean 'train'?; there are {', '.join(COMMANDS)}",
        ),
        (["--method", "dop"], f"method must be one of {', '.join(METHODS)}, got 'dop'; did you mean 'dpo'?"),
        (["--method", "dpo", "--loss.gamma", "1"], "unknown setting 'loss.gamma'"),
        (
            ["--gradient_accumulation_steps", "4"],
            "use global_batch_size, which is gradient_accumulation_steps * per_device",
        ),
        (["--config", "a.yaml", "b.yaml"], "config must have one value"),
        (["--config", "nowhere.yaml"], "config must be an existing YAML file"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(capsys, monkeypatch, words, message):
    monkeypatch.delenv("PYPREFOPT_DEBUG", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_help_lists_every_setting_with_its_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--method", "dpo", "--help"])
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, _ in dotted_names(RunConfig, "dpo"):
        assert f"--{name} " in out, name
    assert "strength of the pull to the reference" in out
    assert "--config" in out


def test_help_begins_with_what_people_need_first(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--method", "dpo", "--help"])
    out = capsys.readouterr().out
    names = "method", "model", "data", "output_dir", "learning_rate", "max_grad_norm", "tokenizer", "seed", "loss.beta"
    places = [re.search(rf"--{name} [A-Z{{]", out).start() for name in names]
    assert places == sorted(places)


@pytest.fixture
def run(monkeypatch):
    """`stages.run.train` replaced by a recorder, which can also raise."""
    calls: list[RunConfig] = []
    module = types.ModuleType("pyprefopt.pipeline.run")
    module.error = None

    def train(config: RunConfig) -> None:
        calls.append(config)
        if module.error:
            raise module.error

    module.train = train
    module.calls = calls
    monkeypatch.setitem(sys.modules, "pyprefopt.pipeline.run", module)
    return module


@pytest.mark.parametrize("command", [["train"], []])
def test_main_runs_the_resolved_config(run, command):
    assert cli.main([*command, "--method", "dpo", "--loss.beta", "0.3"]) == 0
    assert run.calls == [configure(method="dpo", loss={"beta": 0.3})]


@pytest.mark.parametrize("error", [DataError("row 3: empty"), ArtifactError("locked")])
def test_errors_of_a_run(run, capsys, monkeypatch, error):
    run.error = error
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == f"error (rank 1): {error}\n"


def test_other_ranks_leave_setting_errors_to_rank_0(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["--nothing"]) == 2
    assert capsys.readouterr().err == ""


def test_debug_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("PYPREFOPT_DEBUG", "1")
    with pytest.raises(ConfigError):
        cli.main(["--nothing"])
    run.error = DataError("row 3")
    with pytest.raises(DataError):
        cli.main(["train"])


# -- the data commands, in processes of their own


def pyprefopt(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyprefopt", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_prepare_inspect_and_truncate(tmp_path):
    pairs, tokenizer = write_pairs(tmp_path / "pairs.jsonl", bad=(7,)), write_tokenizer(tmp_path / "tokenizer")
    words = ["prepare", pairs, "--tokenizer", tokenizer, "--out", tmp_path / "out"]
    failed = pyprefopt(*words)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: 1 of 40 rows cannot be used\n  empty_response: 1")
    again = failed.stderr.splitlines()[-1].strip()
    assert again == f"pyprefopt {shlex.join(map(str, words))} --on_error skip"
    done = pyprefopt(*shlex.split(again)[1:])
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'out'}: 39 of 40 rows," in done.stdout
    assert "rejected, empty_response: 1" in done.stdout
    assert "done before, used again" in pyprefopt(*shlex.split(again)[1:]).stderr
    other = pyprefopt(*shlex.split(again)[1:], "--max-tokens=900")
    assert other.returncode == 2
    assert "--overwrite" in other.stderr
    seen = pyprefopt("inspect", tmp_path / "out", "--row", 3, "--color", "always")
    assert "40 rows in, 39 used, 1 rejected" in seen.stdout
    assert "\ntokenizer  eos_token </s>, tokenizer.json sha256 " in seen.stdout
    assert "\x1b[32m" in seen.stdout
    assert "\x1b" not in pyprefopt("inspect", tmp_path / "out").stdout
    words = ["truncate", pairs, "--ratio", "0.5", "--unit", "characters", "--out", tmp_path / "cut.jsonl"]
    assert pyprefopt(*words).stdout == f"{tmp_path / 'cut.jsonl'}\n"
    cut = [json.loads(line) for line in (tmp_path / "cut.jsonl").read_text().splitlines()]
    assert cut[0]["chosen"] == row(0)["chosen"][:4]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("prepare", "stopped; give the same command again to go on\n"),
        ("train", "stopped; give the same command again to go on\n"),
        ("truncate", "stopped; nothing is written\n"),
        ("inspect", "stopped\n"),
    ],
)
def test_ctrl_c_is_told_in_one_line(capsys, monkeypatch, command, told):
    def interrupted(_):
        raise KeyboardInterrupt

    def ended(_):
        raise KeyboardInterrupt("2 steps are lost")

    monkeypatch.delenv("PYPREFOPT_DEBUG", raising=False)
    monkeypatch.setattr(f"pyprefopt.cli.{command}.run", interrupted)
    assert cli.main([command, "x"]) == 130
    assert capsys.readouterr() == ("", told)
    monkeypatch.setattr(f"pyprefopt.cli.{command}.run", ended)
    assert cli.main([command, "x"]) == 130
    assert capsys.readouterr().err.startswith("2 steps are lost")
    monkeypatch.setenv("RANK", "1")  # the other ranks say nothing
    assert cli.main([command, "x"]) == 130
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("PYPREFOPT_DEBUG", "1")
    with pytest.raises(KeyboardInterrupt):
        cli.main([command, "x"])


def test_the_version(capsys):
    assert cli.main(["train", "--version"]) == 0
    assert capsys.readouterr() == (f"pyprefopt {__version__}\n", "")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"pyprefopt {__version__}\n", "")
    assert "--version" in pyprefopt("--help").stdout


def test_truncate_takes_tokens(tmp_path):
    pairs, tokenizer = write_pairs(tmp_path / "p.jsonl"), write_tokenizer(tmp_path / "t")
    for option in ("--tokens", "--length"):
        words = ["truncate", str(pairs), option, "3", "--tokenizer", str(tokenizer), "--out", str(tmp_path / option)]
        assert cli.main([*words[:-1], words[-1] + ".jsonl"]) == 0
    assert (tmp_path / "--tokens.jsonl").read_bytes() == (tmp_path / "--length.jsonl").read_bytes()
    assert json.loads((tmp_path / "--tokens.jsonl").open().readline())["chosen"] == "0 i"


def test_describe_says_what_was_detected(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    seen = pyprefopt("prepare", pairs, "--describe")
    assert seen.returncode == 0, seen.stderr
    lines = seen.stdout.splitlines()
    assert lines[0] == "format: preference"
    assert f"  name: {pairs}, bytes: {pairs.stat().st_size}" in lines
    assert "rows: known when all of them are read" in lines
    assert "None" not in seen.stdout
    assert not [line for line in lines if line.startswith(("ignored", "carried", "hint"))]


def test_describe_tells_how_rows_with_a_score_may_be_read(capsys, tmp_path):
    rows = [{"prompt": "p", "response": f"r{index}", "score": index} for index in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["prepare", str(tmp_path / "rows.jsonl"), "--describe"]) == 0
    seen = capsys.readouterr().out
    assert "format: prompt_response" in seen
    assert re.search(r"^hint: every row is taken as an SFT example.*data\.read_candidates .*candidate_rows", seen, re.M)


def test_one_of_a_thing_is_said_as_one(capsys, tmp_path):
    pairs, tokenizer = write_pairs(tmp_path / "pairs.jsonl", 1), write_tokenizer(tmp_path / "tokenizer")
    assert cli.main(["prepare", str(pairs), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]) == 0
    assert re.search(r"out: 1 of 1 row, \d+ tokens, 1 shard, ", capsys.readouterr().out)
    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    assert re.search(r"out: 1 row, 3 segments, .* 1 shard, .*\n.*: 1 row in, 1 used", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "x.jsonl"], "error: tokenizer must be given; pass --tokenizer"),
        (
            ["prepare", "x.jsonl", "--cutoff_len", "9"],
            "error: unknown setting 'cutoff_len'; use max_tokens (prompt and",
        ),
        (["prepare", "x.jsonl", "--tokeniser", "y"], "error: unknown setting 'tokeniser'; did you mean 'tokenizer'?"),
        (["prepare"], "error: IN must be given; see pyprefopt prepare --help"),
        (
            ["prepare", "x.jsonl", "--max_tokens", "many"],
            "error: max_tokens must be a whole number or null, got 'many'",
        ),
        (
            ["prepare", "x.jsonl", "--on_error", "skp"],
            "error: on_error must be one of 'raise', 'skip', got 'skp'; did you mean 'skip'?",
        ),
        (["truncate", "x.jsonl", "--ratio", "2"], "error: ratio must be in (0, 1], got 2.0"),
        (["truncate", "x.jsonl"], "given exactly one of ratio, length and tokens, got none"),
        (
            ["inspect", "nowhere"],
            "error: nowhere must be a prepared folder, but it is not there; make one: pyprefopt prepare",
        ),
        (["inspect", "a", "b"], "error: unexpected argument 'b'"),
    ],
)
def test_errors_of_the_data_commands(capsys, monkeypatch, words, message):
    monkeypatch.delenv("PYPREFOPT_DEBUG", raising=False)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_the_data_commands_load_no_torch(tmp_path):
    pairs, tokenizer = write_pairs(tmp_path / "p.jsonl"), write_tokenizer(tmp_path / "t")
    commands = [
        ["prepare", pairs, "--tokenizer", tokenizer, "--out", tmp_path / "o"],
        ["inspect", tmp_path / "o"],
        ["truncate", pairs, "--ratio", "0.5", "--tokenizer", tokenizer, "--out", tmp_path / "c.jsonl"],
    ]
    code = (
        "import json, sys; from pyprefopt import cli;"
        "assert [cli.main(words) for words in json.loads(sys.argv[1])] == [0, 0, 0]; print(*sys.modules)"
    )
    words = [sys.executable, "-c", code, json.dumps([list(map(str, command)) for command in commands])]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.splitlines()[-1].split()) & {"torch", "deepspeed", "ray"}


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "--out", "o", "--describe"],
        ["--describe", "a", "b", "--out", "o"],
        ["--describe", "true", "--out=o", "a", "b"],
        ["a", "--out", "o", "b", "--describe"],
    ],
)
def test_words_of_no_option_may_stand_anywhere(words):
    given = read_given(prepare.Prepare, words)
    assert given == {"input": ("a", "b"), "out": "o", "describe": True}


@pytest.mark.parametrize("command", ["prepare", "truncate", "inspect"])
def test_help_of_the_data_commands(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: pyprefopt {command}" in capsys.readouterr().out


def test_overview_and_scripts(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    assert "prepare       preference data to a folder" in capsys.readouterr().out
    script = [sys.executable, ROOT / "scripts/prepare.py", "--help"]
    assert "--max_prompt_tokens" in subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_formats_are_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    words = capsys.readouterr().out.replace(",", " ").replace(";", " ").split()
    assert set(names_of("preferences", "candidates", "instructions")) <= set(words)


def test_the_kinds_of_files_and_formats_are_in_truncates_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["truncate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    listed = names_of("preferences", "candidates")
    assert all(name in text.split("of the rows: ")[1] for name in listed)
    for name in (
        ".jsonl",
        ".tsv",
        ".xz",
        ".arrow",
        "ShareGPT",
        "SHP",
        "Alpaca",
        "HH-RLHF",
        "UltraFeedback",
        "candidates",
    ):
        assert name in text


def test_inspect_tells_an_unfinished_folder(capsys, tmp_path):
    (tmp_path / "out" / ".work").mkdir(parents=True)
    assert cli.main(["inspect", str(tmp_path / "out")]) == 2
    assert (
        "out must be a finished folder, but its preparation was stopped, or found bad rows; give the same"
        in capsys.readouterr().err
    )


def test_inspect_names_the_folder_and_how_to_make_one(capsys, tmp_path):
    for folder, why in ((tmp_path / "nosuch", "is not there"), (tmp_path, "holds no manifest.json")):
        assert cli.main(["inspect", str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"{folder} must be a prepared folder, but it {why}; make one: pyprefopt prepare" in error


def test_truncate_from_the_command_line(capsys, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a b", "rejected": "c d", "id": 1, "x": 1.50}\n')
    assert cli.main(["truncate", str(path), "--length", "1", "--unit", "words"]) == 0
    out = capsys.readouterr().out.strip()
    assert out == str(tmp_path / "pairs.truncated.jsonl")
    with open(out) as file:
        assert file.read().startswith('{"prompt": "q", "chosen": "a", "rejected": "c", "id": 1, "x": 1.50, ')
    for words, message in (
        (["--length", "1", "--unit", "words", "--rounding", "floor"], "rounding must be left out without ratio"),
        (["--length", "1", "--unit", "words", "--tokenizer", "t"], "tokenizer must be left out with unit 'words'"),
    ):
        assert cli.main(["truncate", str(path), "--overwrite", *words]) == 2
        assert message in capsys.readouterr().err
