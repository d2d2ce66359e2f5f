"""Templates that would overflow the stack, fill the memory or never end, at every door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import pyprefopt
from pyprefopt import cli
from pyprefopt.data import load_tokenizer, tokenize
from pyprefopt.data.tokenization.reference import OutOfBoundsError, Renderer
from pyprefopt.data.tokenization.render import apply_chat_template, reference_renderer
from pyprefopt.errors import ConfigError, DataError
from tests.pipeline.runs import small, write_inputs

CHAT = [{"role": "user", "content": "Hi"}]
NEVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
# template -> what the error says
REFUSED = {
    "{{ 1" + "+1" * 100_000 + " }}": "longer or deeper than 1000",
    "{{ x" + "|trim" * 100_000 + " }}": "longer or deeper than 1000",
    "{{ x" + ".b" * 100_000 + " }}": "longer or deeper than 1000",
    "{{ " + "not " * 100_000 + "x }}": "longer or deeper than 1000",
    "{{ dict(" + ",".join(f"a{i}=1" for i in range(10_000)) + ") }}": "more than 2000 arguments",
    "{{ x }}" + "x" * (1 << 20): "more than 1048576",
}
ENDED = {
    NEVER: "more than 4000000 instructions",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns == ns }}": "may not hold a namespace",
    "{{ [1] * 100000000 }}": "more than 64 MiB",
    "{{ 'a'.center(1000000000) }}": "more than 64 MiB",
    "{{ (range(99999) * 9999)|sum }}": "more than 64 MiB",
}


@pytest.mark.parametrize("source", REFUSED, ids=range(len(REFUSED)))
def test_what_is_too_deep_is_refused_before_data_is_read(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = write_inputs(tmp_path)
    template = tmp_path / "evil.jinja"
    template.write_text(source)
    rule = f"evil.jinja: chat_template does not compile: .*{REFUSED[source]}"
    with pytest.raises(ConfigError, match=rule):
        load_tokenizer(inputs.tokenizer, chat_template=template)
    with pytest.raises(ConfigError, match=rule):
        pyprefopt.train(small(tmp_path, tmp_path / "run", chat_template=str(template), check=True))
    words = ["prepare", tmp_path / "train.parquet", "--tokenizer", inputs.tokenizer, "--out", tmp_path / "out"]
    assert cli.main([*map(str, words), "--chat_template", str(template)]) == 2
    assert "evil.jinja: chat_template does not compile: " in capsys.readouterr().err
    with pytest.raises(ConfigError, match=REFUSED[source]):
        apply_chat_template(CHAT, source)


@pytest.mark.parametrize("source", ENDED, ids=range(len(ENDED)))
def test_what_never_ends_is_ended(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Most rows are refused unrendered: a template that only exceeds its bounds is given up."""
    inputs = write_inputs(tmp_path)
    template = tmp_path / "evil.jinja"
    template.write_text(source)
    frame = pl.DataFrame({"prompt": [CHAT] * 2000, "chosen": ["a"] * 2000, "rejected": ["b"] * 2000})
    with pytest.raises(DataError, match=ENDED[source]):
        tokenize(frame, load_tokenizer(inputs.tokenizer, chat_template=template))
    words = ["prepare", tmp_path / "train.parquet", "--tokenizer", inputs.tokenizer, "--out", tmp_path / "out"]
    assert cli.main([*map(str, words), "--chat_template", str(template)]) == 2
    assert ENDED[source] in capsys.readouterr().err
    with pytest.raises((ConfigError, DataError), match=ENDED[source]):
        pyprefopt.train(small(tmp_path, tmp_path / "run", chat_template=str(template), check=True))


@pytest.mark.parametrize("bomb", [NEVER, "{{ 'a' * 10**11 }}", "{{ 10**(10**9) }}"])
def test_the_reference_is_bounded(bomb: str) -> None:
    """What the engine does not know (here `wordcount`) takes transformers, in a process that can be ended."""
    source = "{{ messages[0].content|wordcount }}" + bomb
    with pytest.raises(ConfigError, match="took more time than it may in transformers' renderer"):
        apply_chat_template(CHAT, source)
    assert apply_chat_template(CHAT, "{{ messages[0].content|wordcount }}") == "1"


def test_the_reference_gives_a_template_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def render(self: Renderer, **request: object) -> str:
        calls.append(request)
        raise OutOfBoundsError("took more")

    monkeypatch.setattr(Renderer, "render", render)
    renderer = reference_renderer("{{ x }}", {})
    for _ in range(5):
        with pytest.raises(ValueError, match="took"):
            renderer("[]", False, None, None, "why")
    assert len(calls) == 2


def test_a_small_stack_suffices() -> None:
    """A thread of Python's may have 256 KiB, in which the compiler does not run."""
    program = (
        "import threading\n"
        "from pyprefopt.data.tokenization.render import apply_chat_template as render\n"
        "threading.stack_size(1 << 19)\n"
        "source = '{{ 1' + '+1' * 490 + ' }}'\n"
        "chat = [{'role': 'user', 'content': 'a'}]\n"
        "thread = threading.Thread(target=lambda: print(render(chat, source)))\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "491\n"), done.stderr
