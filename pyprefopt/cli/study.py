"""`pyprefopt study NAME [options]`: a grid of runs, its tables and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyprefopt.cli.ranks import alike, show_log
from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.ranks import is_main

if TYPE_CHECKING:
    from pyprefopt.studies.catalog import Study

FLAGS = {"true": True, "false": False}


def run(argv: Sequence[str]) -> None:
    """Run the study that the first word names; without one, list them."""
    from pyprefopt.studies.catalog import STUDIES

    words = [word for word in argv if not word.startswith("--local_rank")]
    if not words or words[0] in ("-h", "--help"):
        print(_overview(STUDIES))
        return
    name = words[0]
    with alike():
        if name not in STUDIES:
            raise ConfigError(f"unknown study '{name}'{did_you_mean(name, STUDIES)}; there are {', '.join(STUDIES)}")
        if "--help" in words or "-h" in words:
            print(_options(name, STUDIES[name]))
            return
        config, own = read(name, STUDIES[name], words[1:])
    show_log()

    from pyprefopt.studies.run import format_summary, run_study

    result = run_study(name, config, **own)
    if is_main():
        print(f"study {name}: {result.cells.height} runs, {result.output_dir}\n{format_summary(result)}")


def read(name: str, study: Study, argv: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The settings that all runs share, and the study's own options, as `run_study` takes them."""
    from pyprefopt.settings.command_line import split
    from pyprefopt.settings.resolve import parse_args
    from pyprefopt.settings.typed import read_yaml
    from pyprefopt.studies.catalog import check_method

    given = split(argv)
    quick, plots = _flag(given, "quick", default=False), _flag(given, "plots", default=True)
    seeds = _values("seeds", given.pop("seeds"), int) if "seeds" in given else None
    values = {
        axis.option: _values(axis.option, given.pop(axis.option), axis.kind)
        for axis in study.axes
        if axis.option in given
    }
    file = given.get("config", [])
    from_file = read_yaml(file[0]) if len(file) == 1 else {}
    if from_file.get("overwrite") is False:  # all settings of a run, as they are written out, name it too
        del from_file["overwrite"]
    named = set(given) | set(_dotted(from_file))
    _refuse_varied(name, study, named)
    check_method(study, *(given.get("method") or [from_file.get("method", study.methods[0])]))
    varied = {axis.setting: (values.get(axis.option) or axis.values)[0] for axis in study.axes if axis.setting}
    defaults = {"method": study.methods[0], "output_dir": f"runs/study-{name}", **study.settings, **varied}
    words = [f"--{setting}={value}" for setting, value in defaults.items() if setting not in named]
    for option, found in given.items():
        words += [f"--{option}={found[0]}"] if len(found) == 1 else [f"--{option}", *found]
    return parse_args(words), {"values": values, "quick": quick, "plots": plots, "seeds": seeds}


def _refuse_varied(name: str, study: Study, named: set[str]) -> None:
    options = {axis.setting: axis.option for axis in study.axes if axis.setting is not None} | {"seed": "seeds"}
    for setting in sorted(named & set(options)):
        raise ConfigError(
            f"{setting} is what study {name} varies; leave it out and give its values: --{options[setting]} …"
        )
    if "overwrite" in named:
        raise ConfigError("overwrite does not apply to a study, which keeps the policy of every run; leave it out")
    for setting in sorted(named & set(study.excludes)):
        raise ConfigError(f"{setting} does not apply to study {name}, which makes it for every run; leave it out")


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _flag(given: dict[str, list[str]], name: str, *, default: bool) -> bool:
    if name not in given:
        return default
    words = given.pop(name) or ["true"]
    if len(words) != 1 or words[0].lower() not in FLAGS:
        raise ConfigError(f"{name} must be true or false, got {' '.join(words)!r}")
    return FLAGS[words[0].lower()]


def _values(option: str, words: Sequence[str], kind: type) -> list[Any]:
    if not words:
        raise ConfigError(f"{option} must have at least one value; write --{option} VALUE VALUE …")
    try:
        return [kind(word) for word in words]
    except ValueError:
        expected = {float: "numbers", int: "whole numbers"}.get(kind, "texts")
        raise ConfigError(f"{option} must be {expected}, got {' '.join(words)!r}") from None


def _overview(studies: Mapping[str, Study]) -> str:
    width = max(map(len, studies))
    lines = [f"  {name:{width}}  {study.title}" for name, study in studies.items()]
    return "\n".join(
        [
            "usage: pyprefopt study NAME [options]        (under DeepSpeed: deepspeed scripts/study.py NAME [options])",
            "",
            *lines,
            "",
            "For example: pyprefopt study ratios --quick",
            "pyprefopt study NAME --help lists a study's own options. Besides them, a study takes those of train.",
        ]
    )


def _options(name: str, study: Study) -> str:
    lines = [f"pyprefopt study {name}: {study.title}", ""]
    for axis in study.axes:
        grid, quick = (" ".join(map(str, values)) for values in (axis.values, axis.quick))
        lines.append(f"  --{axis.option} V V …  values of {axis.setting or axis.column}; {grid} (--quick: {quick})")
    lines += [
        "  --seeds N N …  the whole grid for each of these seeds; means and 95 % intervals are over them; 0",
        "  --quick [true|false]  a few points of each axis; false",
        "  --plots [true|false]  figures as PNG, which need matplotlib (pip install 'pyprefopt[analysis]'); true",
        "",
        f"All options of pyprefopt train apply to every run ({', '.join(study.methods)} as --method); here by default: "
        + " ".join(f"--{setting} {value}" for setting, value in study.settings.items()),
    ]
    return "\n".join(lines).removesuffix("; here by default: ")
