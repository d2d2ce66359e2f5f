"""`pyprefopt prepare IN [IN ...] --tokenizer T --out DIR`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyprefopt.cli.options import read_given
from pyprefopt.data.reading.catalog import names_of
from pyprefopt.data.truncation.rule import AMOUNTS, Truncation
from pyprefopt.errors import ConfigError, check, counted
from pyprefopt.log import Bar, Level, show_log
from pyprefopt.settings.command_line import loose_words

FORMATS = ", ".join(names_of("preferences", "candidates", "instructions"))


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Preference data to a folder of token segments, which `pyprefopt train --data DIR` and pyprefopt.data read.

    The same input, tokenizer and settings give the same bytes; a killed run goes on where it was.
    """

    input: tuple[str, ...] = loose_words("IN")  # files, globs or folders of pairs, in any known format
    tokenizer: str | None = None  # directory, hub name or tokenizer.json
    out: str | None = None  # folder to make; new, empty, or made by this command
    chat_template: str | None = None  # plain, chatml, a Jinja file or the name of one of the tokenizer's; None: its own
    eos_token: str | None = None  # the text of the end token, for bare tokenizers
    columns: tuple[str, ...] = ()  # columns of other names, as prompt=question chosen=good rejected=bad (ours=yours)
    # of UltraFeedback's raw set: helpfulness, honesty, instruction_following or truthfulness, whose ratings are the
    # scores of its completions
    aspect: str | None = None
    format: str = field(default="auto", metadata={"help": f"of the rows: {FORMATS}; auto: by schema"})
    max_prompt_tokens: int | None = 1024  # longer prompts: see prompt_overflow; tokens, or none
    # longer prompts: bad rows (error), rows that are left out and counted (drop), or what is kept of them
    prompt_overflow: Literal["error", "drop", "keep_start", "keep_end"] = "error"
    max_tokens: int | None = 2048  # prompt plus response; longer ones are cut; tokens, or none
    min_response_tokens: int = 1  # rows with a response of fewer tokens are left out and counted; SePO's code: 8
    boundary: Literal["split", "error", "join"] = "split"  # a token across prompt and response; join: for reward models
    score_reasoning: bool = True  # the assistant's reasoning (<think>…</think>, reasoning_content) is scored too
    truncation: Truncation = field(default_factory=Truncation)
    offsets: bool = True  # keep byte offsets and turns of tokens (10 of 14 bytes a token)
    on_error: Literal["raise", "skip"] = "raise"  # bad rows: report all and stop, or drop and record them
    seed: int = 0  # which rows of a mixture (IN as a.jsonl:0.7 b.jsonl:0.3) are drawn
    engine: str = "local"  # local, or ray: over a Ray cluster (pip install 'pyprefopt[ray]')
    overwrite: bool = False  # replace a folder that was made from something else
    log_level: Level = "info"  # what is shown: debug, info, warning or error
    progress_bar: bool = True  # on a terminal; elsewhere a line a minute
    describe: bool = False  # print what was detected in the input, and stop


def run(argv: Sequence[str]) -> None:
    """Prepare by the options."""
    given = read_given(Prepare, argv)
    cut = given.pop("truncation", {})
    options = Prepare(**given)
    if options.describe:
        _describe(options.input, options.format, options.columns, options.aspect)
        return
    for name in cut if not {*AMOUNTS} & {*cut} else ():
        rule = "left out without --truncation.ratio or --truncation.length"
        check(name not in cut, f"truncation.{name}", cut.get(name), rule)
    if options.tokenizer is None or options.out is None:
        missing = "tokenizer must be given; pass --tokenizer DIR_OR_FILE"
        raise ConfigError(missing if options.tokenizer is None else "out must be given; pass --out DIR")
    show_log(options.log_level)

    from pyprefopt.data.preparation.job import prepare
    from pyprefopt.data.tokenization.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer, eos_token=options.eos_token, chat_template=options.chat_template)
    own = (
        "input",
        "tokenizer",
        "out",
        "eos_token",
        "chat_template",
        "truncation",
        "describe",
        "log_level",
        "progress_bar",
    )
    began = time.perf_counter()
    with Bar("prepare", unit="byte", shown=options.progress_bar) as bar:
        store = prepare(
            options.input,
            tokenizer,
            options.out,
            truncation=cut,
            progress=_Meter(bar).show,
            command=shlex.join(["pyprefopt", "prepare", *argv]),
            **{name: value for name, value in vars(options).items() if name not in own},
        )
    print(_summary(store.manifest, options.out, time.perf_counter() - began))


class _Meter:
    """Progress: share of the input, rows/s, tokens/s, time left."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.began = time.perf_counter()
        self.skipped: Any = None  # what a killed run had done

    def show(self, progress: Any) -> None:
        if self.skipped is None:
            self.skipped = progress
        seconds = max(time.perf_counter() - self.began, 1e-9)
        rows, tokens = progress.rows - self.skipped.rows, progress.tokens - self.skipped.tokens
        self.bar.total = progress.bytes_total
        self.bar.advance(
            progress.bytes_read - self.bar.done,
            rows=f"{progress.rows:,} ({rows / seconds:,.0f}/s)",
            tokens=f"{progress.tokens:,} ({tokens / seconds:,.0f}/s)",
        )


def _describe(source: Sequence[str], format: str, columns: Sequence[str], aspect: str | None) -> None:  # noqa: A002
    from pyprefopt.data.reading.sources import open_source

    seen = open_source(list(source), format=format, columns=columns, aspect=aspect).describe()
    seen["rows"] = "known when all of them are read" if seen["rows"] is None else seen["rows"]
    print("\n".join(_outline(seen)))


def _outline(value: Any, name: str = "", depth: int = 0) -> Iterator[str]:
    """Nested facts as indented lines, one a line; what is empty is left out."""
    indent = "  " * depth
    if isinstance(value, Mapping) and value:
        if name:
            yield f"{indent}{name}:"
        for key, part in value.items():
            yield from _outline(part, str(key), depth + bool(name))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        yield f"{indent}{name}:"
        for part in value:
            yield f"{indent}  " + ", ".join(f"{key}: {text}" for key, text in part.items() if text is not None)
    elif value not in (None, [], {}):
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        yield f"{indent}{name}: {shown}"


def _summary(manifest: dict[str, Any], out: str, seconds: float) -> str:
    lines = [
        f"{out}: {manifest['rows']:,} of {counted(manifest['rows_in'], 'row')}, "
        f"{counted(manifest['tokens'], 'token')}, {counted(len(manifest['shards']), 'shard')}, {seconds:.1f} s"
    ]
    lines += [f"  rejected, {reason}: {count:,}" for reason, count in manifest["rejected"].items()]
    if manifest["responses_cut"]:
        limit_text = f"max_tokens = {manifest['settings']['max_tokens']}"
        lines.append(f"  responses cut to fit {limit_text}: {manifest['responses_cut']:,}")
    return "\n".join(lines)
