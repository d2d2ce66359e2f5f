"""The pages' own method and provider are trained; their files are keyed, copied, and run again when they change."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import pyprefopt
from pyprefopt.cli.main import main
from pyprefopt.cli.options import parse_args
from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.rewards import REWARDS
from tests.pipeline.runs import digest, small, write_inputs

DOCS = Path(__file__).parents[2] / "docs"
ALONE = {"base": {}, "oracle": {}, "policy_init": "model"}


def write_example(page: str, name: str, folder: Path) -> Path:
    """The block behind `name` on a page, as that file."""
    block = re.search(rf"`{name}`:\n\n```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    (folder / name).write_text(block[1], encoding="utf-8")
    return folder / name


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other test knows the classes that are loaded here."""
    monkeypatch.setattr(METHODS, "own", {})
    monkeypatch.setattr(REWARDS, "own", {})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a model, and the pages' examples."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    write_example("methods.md", "my_methods.py", folder)
    write_example("rewards.md", "my_rewards.py", folder)
    return folder


def test_the_pages_examples_pass_their_check(inputs: Path) -> None:
    assert pyprefopt.check_method(f"{inputs}/my_methods.py:Hinge", beta=0.2).failed == []
    assert pyprefopt.check_method(f"{inputs}/my_rewards.py:Clipped", most=1.0).failed == []


def test_a_method_of_ones_own_trains_and_is_made_again_when_its_file_changes(inputs: Path, tmp_path: Path) -> None:
    file = write_example("methods.md", "my_methods.py", tmp_path)
    given = {**ALONE, "method": f"{file}:Hinge", "loss": {"beta": 0.5}, "num_train_epochs": 2.0}
    config = small(inputs, tmp_path / "run", **given)
    made = pyprefopt.train(config)
    losses = made.summary["stages"]["policy"]["train_loss"]
    assert losses[0] == pytest.approx(1.0)
    assert losses[1] < losses[0]
    first, copies = digest(made.output_dir), sorted((made.output_dir / "inputs").iterdir())
    assert [copy.read_bytes() for copy in copies] == [file.read_bytes()]
    reads = json.loads((made.output_dir / "stages" / "policy" / "manifest.json").read_text())["reads"]
    assert reads["method"]["method"].startswith("Hinge of ")
    assert reads["method"]["target"] == 1.0
    again = pyprefopt.train(made.output_dir / "config.yaml")
    assert all(stage["reused"] for stage in again.summary["stages"].values())

    file.write_text(file.read_text().replace("torch.relu(", "torch.nn.functional.softplus("))
    with pytest.raises(ArtifactError, match=r"holds a finished policy that was made with other method\.method"):
        pyprefopt.train(made.output_dir / "config.yaml")
    other = pyprefopt.train(made.output_dir / "config.yaml", overwrite=True)
    assert not other.summary["stages"]["policy"]["reused"]
    assert other.summary["stages"]["data"]["reused"]
    assert digest(made.output_dir) != first
    assert len(list((made.output_dir / "inputs").iterdir())) == 2


def test_a_provider_of_ones_own_is_trained_with(inputs: Path, tmp_path: Path) -> None:
    rewards = {"name": f"{inputs}/my_rewards.py:Clipped", "most": 0.01, "beta": 2.0}
    given = {"method": "tgdpo", "rewards": rewards, "max_steps": 2}
    optim = {"learning_rate": 1e-2, "global_batch_size": 16}
    config = small(inputs, tmp_path / "run", base=optim, oracle={**optim, "loss": {"beta": 0.5}}, **given)
    made = pyprefopt.train(config)
    facts = made.summary["stages"]["rewards"]
    assert 0 < facts["chosen"]["std_reward"] <= 0.02
    reads = json.loads((made.output_dir / "stages" / "rewards" / "manifest.json").read_text())["reads"]
    assert reads["provider"]["name"].startswith("Clipped of ")
    assert [path.name.split("-")[0] for path in (made.output_dir / "inputs").iterdir()] == ["my_rewards"]
    again = pyprefopt.train(str(made.output_dir / "config.yaml"))
    assert all(stage["reused"] for stage in again.summary["stages"].values())


def test_a_file_is_keyed_by_its_content_wherever_it_stands(inputs: Path, tmp_path: Path) -> None:
    from pyprefopt.stages.stage import plain

    other = write_example("methods.md", "my_methods.py", tmp_path)
    moved = tmp_path / "elsewhere.py"
    moved.write_bytes(other.read_bytes())
    keys = [plain(small(inputs, tmp_path, **ALONE, method=f"{file}:Hinge").loss) for file in (other, moved)]
    assert keys[0] == keys[1]
    moved.write_text(moved.read_text() + "# changed\n")
    assert plain(small(inputs, tmp_path, **ALONE, method=f"{moved}:Hinge").loss) != keys[0]


def test_its_settings_are_options(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(inputs)
    common = ["--model", "m", "--data", "d.jsonl"]
    config = parse_args(["--method", "my_methods.py:Hinge", "--loss.target", "2", *common])
    assert (config.loss.target, config.output_dir) == (2.0, "runs/Hinge")  # type: ignore[attr-defined]
    for words in (["--rewards", "my_rewards.py:Clipped"], ["--rewards.name=my_rewards.py:Clipped"]):
        config = parse_args(["--method", "tgdpo", *words, "--rewards.most", "1", *common])
        assert config.rewards.name == "my_rewards.py:Clipped"
        assert config.rewards.most == 1.0  # type: ignore[union-attr]
    with pytest.raises(SystemExit):
        parse_args(["--method", "my_methods.py:Hinge", "--help"])
    assert "margin that is enough" in capsys.readouterr().out
    for words, said in (
        (["--method", "my_methods.py:Hinge", "--loss.targt", "2"], "unknown setting 'loss.targt'; did you mean"),
        (["--method", "my_methods.py"], "got 'my_methods.py'; write FILE.py:NAME, NAME being the class"),
        (["--method", "my_methods.py:Hing"], "method must name something of my_methods.py, which has no 'Hing'"),
        (["--method", "tgdpo", "--rewards", "nix.py:A"], "rewards must name an existing file, got 'nix.py'"),
        (["--method", "tgdpo", "--rewards", "my_methods.py:Hinge"], "'Hinge' must be a class derived from Reward"),
    ):
        assert main(["train", *words, *common]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ('"oracel",', "reads 'oracel', which nothing makes; reads may have base, oracle, noise"),
        ('"simpo",', "reads 'simpo', which is made for SimPOReward; derive it from that"),
        ('"column",', "reads 'column', which is made for Column; derive it from that"),
    ],
)
def test_a_provider_reads_what_is_made(inputs: Path, tmp_path: Path, reads: str, message: str) -> None:
    file = write_example("rewards.md", "my_rewards.py", tmp_path)
    file.write_text(file.read_text().replace('"oracle", "base"', reads))
    with pytest.raises(ConfigError, match=message):
        small(inputs, tmp_path, method="tgdpo", rewards={"name": f"{file}:Clipped"})


def test_what_is_wrong_ends_the_training_or_is_said(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_example("methods.md", "my_methods.py", tmp_path)
    right = file.read_text()
    file.write_text(right.replace("self.margin(sums, batch))", "self.margin(sums, batch)).mean()"))
    given = {**ALONE, "method": f"{file}:Hinge", "max_steps": 1}
    with pytest.raises(
        ConfigError, match=rf"^{file}:Hinge: loss must be \[P\] .*; pyprefopt check-method {file}:Hinge"
    ):
        pyprefopt.train(small(inputs, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()
    margin = "self.margin(sums, batch)"
    file.write_text(right.replace(margin, f"{margin} + {margin}.mean()"))
    pyprefopt.train(small(inputs, tmp_path / "run", **given))
    said = f"{file}:Hinge, packed as alone: row 0: the loss is"
    assert said in caplog.text
    assert said in (tmp_path / "run" / "run.log").read_text()
