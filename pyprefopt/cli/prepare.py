"""`pyprefopt prepare IN [IN ...] --tokenizer T --out DIR`."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyprefopt.cli.arguments import Parser, flag, limit
from pyprefopt.data.reading.catalog import names_of
from pyprefopt.errors import ConfigError, check, counted


def parser() -> Parser:
    """The options."""
    made = Parser(
        "prepare",
        "Preference data to a folder of token segments, which `pyprefopt train --data DIR` and pyprefopt.data read. "
        "The same input, tokenizer and settings give the same bytes; a killed run goes on where it was.",
    )
    made.add_argument("input", nargs="+", metavar="IN", help="files, globs or folders of pairs, in any known format")
    made.option("tokenizer", "directory, hub name or tokenizer.json")
    made.option("out", "folder to make; new, empty, or made by this command", metavar="DIR")
    made.option("chat_template", "plain, chatml or a Jinja file; None: the tokenizer's own")
    made.option("eos_token", "the text of the end token, for bare tokenizers")
    formats = ", ".join(names_of("preferences", "candidates", "instructions"))
    made.option("format", f"of the rows: {formats}; auto: by schema", default="auto", metavar="FORMAT")
    made.option("max_prompt_tokens", "longer prompts are bad rows; tokens, or none", type=limit, default=1024)
    made.option(
        "prompt_overflow", "of longer prompts: a bad row, or what is kept", choices=("drop", "keep_start", "keep_end"),
        default="drop",
    )  # fmt: skip
    made.option("max_tokens", "prompt plus response; longer ones are cut; tokens, or none", type=limit, default=2048)
    made.option("boundary", "a token across prompt and response", choices=("split", "error"), default="split")
    made.option("truncation.ratio", "keep this share of each response's content tokens; (0, 1]", type=float)
    made.option("truncation.tokens", "keep this many content tokens of each response", type=int)
    made.option("truncation.rounding", "how a share becomes a number of tokens", choices=("ceil", "floor"))
    made.option("truncation.ratio_base", "what a ratio is of", choices=("own", "shared_min"))
    made.option("truncation.cut_end", "what follows the last token kept", choices=("none", "eos", "template"))
    made.option("offsets", "keep byte offsets and turns of tokens (10 of 14 bytes a token)", **flag(default=True))
    made.option(
        "on_error", "bad rows: report all and stop, or drop and record them", choices=("raise", "skip"), default="raise"
    )
    made.option("engine", "local, or ray: over a Ray cluster (pip install 'pyprefopt[ray]')", default="local")
    made.option("overwrite", "replace a folder that was made from something else", **flag())
    made.option("describe", "print what was detected in the input, and stop", **flag())
    return made


def run(argv: Sequence[str]) -> None:
    """Prepare as the options say."""
    given = parser().read(argv)
    source = given.pop("input")
    if given.pop("describe"):
        _describe(source, given["format"])
        return
    whole = given["truncation.ratio"] is None and given["truncation.tokens"] is None
    for name in ("rounding", "ratio_base", "cut_end"):
        value, rule = given[f"truncation.{name}"], "left out without --truncation.ratio or --truncation.tokens"
        check(value is None or not whole, f"truncation.{name}", value, rule)
    for name in ("tokenizer", "out"):
        if given[name] is None:
            raise ConfigError(f"{name} must be given; pass --{name}" + (" DIR" if name == "out" else " DIR_OR_FILE"))
    logger = logging.getLogger("pyprefopt")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)

    from pyprefopt.data.preparation.job import prepare
    from pyprefopt.data.tokenization.tokenizer import load_tokenizer

    names = ("eos_token", "chat_template")
    tokenizer = load_tokenizer(given.pop("tokenizer"), **{name: given.pop(name) for name in names})
    cut = {name: given.pop(name) for name in list(given) if name.startswith("truncation.")}
    began = time.perf_counter()
    with _Bar() as bar:
        store = prepare(
            source,
            tokenizer,
            truncation={name.partition(".")[2]: value for name, value in cut.items() if value is not None},
            progress=bar.show,
            command=shlex.join(["pyprefopt", "prepare", *argv]),
            **given,
        )
    print(_summary(store.manifest, given["out"], time.perf_counter() - began))


class _Bar:
    """Progress on the terminal: share of the input, rows/s, tokens/s, time left."""

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        layout = "{desc} {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"
        self.bar: Any = tqdm(desc="prepare", bar_format=layout, total=1, disable=None, file=sys.stderr)
        self.began = time.perf_counter()
        self.skipped: Any = None  # what a killed run had done
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, progress: Any) -> None:
        if self.skipped is None:
            self.skipped = progress
        seconds = max(time.perf_counter() - self.began, 1e-9)
        rows, tokens = progress.rows - self.skipped.rows, progress.tokens - self.skipped.tokens
        self.bar.total = progress.bytes_total
        self.bar.n = progress.bytes_read
        self.bar.set_postfix_str(
            f"{progress.rows:,} rows ({rows / seconds:,.0f}/s), {progress.tokens:,} tokens ({tokens / seconds:,.0f}/s)"
        )


def _describe(source: Sequence[str], format: str) -> None:  # noqa: A002
    from pyprefopt.data.reading.sources import open_source

    seen = open_source(list(source), format=format).describe()
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
