"""`check_method` passes what ships, and names what is wrong in one of the user's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pyprefopt
from pyprefopt.cli.main import main
from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.rewards import REWARDS
from tests.losses.pairs import REQUIRED

REWARD_REQUIRED = {"strong_weak": {"strong": "a", "weak": "b"}}
IMPORTS = """
from dataclasses import dataclass
from pyprefopt.losses import Method
from pyprefopt.rewards import Reward

"""
METHOD = """
import torch
from dataclasses import dataclass
from pyprefopt.losses import Method

@dataclass(frozen=True)
class Own(Method):
    needs = frozenset({needs})
    {more}
    def loss(self, sums, batch):
        m = self.margin(sums, batch)
        {loss}
"""
LOGISTIC = "return -torch.nn.functional.logsigmoid(m)"
WEIGHTS = "def token_weights(self, batch, logps): "
WRONG = {  # what is wrong -> (body of loss, more of the class, the check that finds it, what it says)
    "mean": ("return m.square().mean()", "", "shapes", r"loss must be \[P\] for unit pair, P = 6, got \[\]"),
    "number": ("return 1.0", "", "shapes", "loss must give a tensor, got float"),
    "float32": ("return m.float().square()", "", "shapes", "must keep the type of the sums, float64 here"),
    "constant": ("return torch.zeros_like(m)", "", "shapes", "loss must have a gradient"),
    "weights": (LOGISTIC, f"{WEIGHTS}return batch.token_mask", "shapes", r"token_weights must be \[K, M\], M = "),
    "undeclared": ("return sums.log_ratio[0][batch.pair_chosen]", "", "shapes", "needs must have 'ref_logps'"),
    "typo": ("return m.squre()", "", "shapes", r"AttributeError: .*'squre' \(line 12\)"),
    "data": ("return m.data * m", "", "gradient (float64)", r"chosen, token \d: autograd gives"),
    "centred": ("return (m - m.mean()).square()", "", "packed as alone", r"the loss is 0 alone and .* of 6"),
    "place": ("return m.square() * torch.arange(1, len(m) + 1)", "", "order of rows", "the loss is .* in one order"),
    "layout": ("return m * (1 + batch.segment_parent.clamp(max=0).sum())", "", "layouts", "with one prompt for both"),
    "confident": (
        LOGISTIC, f"{WEIGHTS}return (logps.exp() / torch.zeros(len(batch.response_row), dtype=logps.dtype).index_add("
        "0, batch.response_index, logps.exp())[batch.response_index])[None]",
        "tokens without weight", "declare reads_unweighted = True",
    ),
    "chance": ("return m * torch.rand(len(m), dtype=m.dtype)", "", "same twice", "the first time and .* the second"),
    "in place": ("batch.response_length.add_(1); return m.square()", "", "same twice", "response_length was changed"),
    "offset": (
        "return self.rewards(sums, batch) + 1", "unit = 'group'", "a batch that counts nothing", "must be 0, .* got .*1"
    ),
    "log": ("return -(m + 50).log()", "", "finite: chosen far behind", "row 0: the loss is nan"),
    "root": ("return (m * m).sqrt()", "", "finite: log-probs of 0", "row 0, chosen, token 0: the gradient is nan"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other test knows the classes that are loaded here."""
    monkeypatch.setattr(METHODS, "own", {})
    monkeypatch.setattr(REWARDS, "own", {})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_passes(name: str) -> None:
    report = pyprefopt.check_method(METHODS[name](**REQUIRED.get(name, {})))
    assert report.failed == []
    assert len(report.checks) > 12
    assert f"{len(report.checks)} of {len(report.checks)} checks passed" in str(report)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_provider_passes(name: str) -> None:
    report = pyprefopt.check_method(REWARDS[name](**REWARD_REQUIRED.get(name, {})))
    assert report.failed == []
    assert len(report.checks) == 7


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, kind: str) -> None:
    loss, more, check, said = WRONG[kind]
    (tmp_path / "own.py").write_text(METHOD.format(needs="()", loss=loss, more=more))
    failed = {found.name: found.said for found in pyprefopt.check_method(f"{tmp_path / 'own.py'}:Own").failed}
    assert check in failed
    assert re.search(said, failed[check]), failed[check]


def test_settings_are_looked_at_from_python() -> None:
    with pytest.raises(ConfigError, match=r"^unknown setting 'loss.bta'; did you mean 'beta'"):
        pyprefopt.check_method("dpo", bta=1)
    with pytest.raises(ConfigError, match=r"^rewards.strong must be given to StrongWeak, which has no default for it$"):
        pyprefopt.check_method("strong_weak", weak="b")


def test_stopped_gradients_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METHOD.format(needs="()", more="", loss="return m * m.detach()"))
    report = pyprefopt.check_method(f"{tmp_path / 'own.py'}:Own")
    assert report.failed == []
    assert "but for what detach() stops" in str(report)


PROVIDER = """
from dataclasses import dataclass
from pyprefopt.rewards import Reward

@dataclass(frozen=True, kw_only=True)
class Own(Reward):
    reads = ("oracle", "base")
    def values(self, columns, tokens):
        r = columns["oracle"] - columns["base"]
        {values}
"""


@pytest.mark.parametrize(
    ("values", "check", "said"),
    [
        ("return r.mean()", "shapes", "values must be [T] float, T = 11, got [] of torch.float32"),
        ("return r - r.mean()", "alone as among others", "among others"),
        ("columns['oracle'].zero_(); return r", "same twice", "the column oracle was changed"),
        ("import torch; return r + torch.rand_like(r)", "same twice", "draw chance from the column 'noise'"),
        ("return columns['oracle'].exp().log()", "finite: log-probs of -1,000", "token 1: the reward is -inf"),
        ("return r / tokens.response_length", "finite: no token to score", ""),
        ("return r + columns['simpo']", "shapes", "KeyError: 'simpo' (line 10)"),
    ],
)
def test_what_is_wrong_in_a_provider_is_named(tmp_path: Path, values: str, check: str, said: str) -> None:
    (tmp_path / "own.py").write_text(PROVIDER.format(values=values))
    failed = {found.name: found.said for found in pyprefopt.check_method(f"{tmp_path / 'own.py'}:Own").failed}
    if said:
        assert said in failed[check]
    else:
        assert failed == {}, "outside of the mask nothing counts"


def test_the_command_prints_a_table_and_ends_as_it_should(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        METHOD.format(needs="()", more="beta: float = 1.0  # a scale", loss="return self.beta * m")
    )
    assert main(["check-method", "own.py:Own", "--loss.beta", "0.5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("own.py:Own: Own(beta=0.5)\n  shapes ")
    assert "packed as alone                     ok      6 rows" in out
    Path("own.py").write_text(METHOD.format(needs="()", more="", loss="return m - m.mean()"))
    assert main(["check-method", "own.py:Own"]) == 2
    found = capsys.readouterr()
    assert "packed as alone                     FAILED  row 0" in found.out
    assert found.err.startswith("error: own.py:Own does not hold what every loss must: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["own.py:Own", "--loss.bta", "1"], "unknown setting 'loss.bta'"),
        (["own.py:On"], "'own.py:On'|has no 'On'; did you mean 'Own'"),
        (["nix.py:Own"], "method must name an existing file, got 'nix.py'"),
        (["own.py:torch"], "'torch' must be a class derived from Method or Reward"),
        (["own.py"], r"check-method takes FILE.py:NAME, or one of sft, dpo, .*got 'own.py'"),
        (["strong_weak"], "--rewards.strong and --rewards.weak must be given"),
        ([], "FILE.py:NAME must be given"),
    ],
)
def test_a_wrong_call_ends_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(METHOD.format(needs="()", more="", loss=LOGISTIC))
    assert main(["check-method", *words]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Own: pass", "must be a class derived from Method or Reward"),
        ("import x y", r"the file must run, got SyntaxError: .* \(line 1\); mend it"),
        ("1/0", r"the file must run, got ZeroDivisionError: .* \(line 1\); mend it"),
        (f"{IMPORTS}class Own(Method):\n    def loss(self, sums, batch): ...", "must be a dataclass"),
        (f"{IMPORTS}@dataclass(frozen=True)\nclass Own(Method): pass",
         "must be whole; define loss in it"),
        (METHOD.format(needs="{'ref_lops'}", more="", loss=LOGISTIC), "needs are of ref_logps, .*got 'ref_lops'"),
        (METHOD.format(needs="()", more="trains_on = 'triples'", loss=LOGISTIC), "trains_on is one of pairs, .*"),
        (f"{IMPORTS}@dataclass(frozen=True)\nclass Own(Reward): pass",
         "must be whole; define reads and values in it"),
    ],
)  # fmt: skip
def test_a_class_that_cannot_be_one_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(ConfigError, match=message):
        pyprefopt.check_method(f"{tmp_path / 'own.py'}:Own")
