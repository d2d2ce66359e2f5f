"""Finds the command, runs it, and prints in one line what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from pyprefopt.errors import ConfigError, PyprefoptError, did_you_mean, on_command_line
from pyprefopt.storage.files import check_name, explain_writing
from pyprefopt.version import __version__

COMMANDS = {  # name -> what it does; each is a module with `run(argv)`
    "train": "train a policy from preference data (under DeepSpeed: deepspeed scripts/train.py)",
    "study": "a grid of runs or decoders, with tables and plots: ratios, oracle_data, alpha_…, truncation, decoding",
    "prepare": "preference data to a folder of token segments that training reads",
    "evaluate": "what models say of given responses: accuracy by ratio and length, KL by position, RewardBench",
    "score": "token rewards of a preference set, by any provider",
    "rank": "scores of all responses of a set by a reward model, beside its rows",
    "generate": "answers to prompts, by a policy or by a policy and its reference together",
    "pairs": "candidates with scores to preference pairs; with --model, of what it generates to prompts",
    "truncate": "keep the first part of every response of a file",
    "check-method": "tries a loss or a provider of token rewards of one's own: gradient, packing, edges",
    "inspect": "what a prepared folder holds: counts, lengths, rejected rows, a sample",
}
HOMES = {"score": "scoring.", "rank": "scoring.", "generate": "generation.", "pairs": "generation."}  # folders


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 where a setting, the data or an artifact breaks its rule, 130 on Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if "--version" in [word for word in words if not word.startswith("--local_rank")][:2]:
        print(f"pyprefopt {__version__}")
        return 0
    if words[0].startswith("-"):  # `pyprefopt --method sepo`
        words.insert(0, "train")
    try:
        for word in words:
            check_name(word)
        if words[0] not in COMMANDS:
            raise ConfigError(
                f"unknown command '{words[0]}'{did_you_mean(words[0], COMMANDS)}; there are {', '.join(COMMANDS)}"
            )
        with on_command_line():
            home = HOMES.get(words[0], "")
            import_module(f"pyprefopt.cli.{home}{words[0].replace('-', '_')}").run(words[1:])
    except PyprefoptError as error:
        return _explain(error)
    except BrokenPipeError:  # `pyprefopt inspect DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno is None:
            raise
        return _explain(error)
    except KeyboardInterrupt as stop:
        if os.environ.get("PYPREFOPT_DEBUG") == "1":
            raise
        return _report_stop(words[0], str(stop))
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pyprefopt COMMAND [options]",
            "",
            *lines,
            "",
            "pyprefopt COMMAND --help lists a command's options, pyprefopt --version the version",
        ]
    )


def _report_stop(command: str, lost: str) -> int:
    """Print from rank 0 that Ctrl-C ended the command, and what is lost where that is known; the exit code."""
    from pyprefopt import ranks

    if ranks.rank() == 0:
        remedy = {"inspect": "", "truncate": "; nothing is written"}
        print((lost or "stopped") + remedy.get(command, "; give the same command again to go on"), file=sys.stderr)
    return 130


def _explain(error: PyprefoptError | OSError) -> int:
    """Print the error, from rank 0 alone if every rank has the same. PYPREFOPT_DEBUG=1 shows the traceback."""
    if os.environ.get("PYPREFOPT_DEBUG") == "1":
        raise error
    from pyprefopt import ranks

    rank = ranks.rank()
    said = explain_writing(error, error.filename or "the disk") if isinstance(error, OSError) else str(error)
    if rank == 0 or not getattr(error, "same_on_all_ranks", False):
        print(f"error{f' (rank {rank})' if rank else ''}: {said}", file=sys.stderr)
    return 2
