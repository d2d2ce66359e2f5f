"""`pyprefopt study NAME [options]`: a grid of runs, its tables and plots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

from pyprefopt.cli.options import on_all_ranks, read_run
from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.log import show_log
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import nested, option_name

if TYPE_CHECKING:
    from pyprefopt.studies.study import Study


DECODING = "decoding"  # the study that trains nothing
ABOUT_DECODING = "reward against divergence from the reference, by decoder (shallow preference signals, Fig. 4)"


@dataclass(frozen=True)
class _Grid:
    seeds: tuple[int, ...] = (0,)  # the whole grid for each of these seeds; means and 95 % intervals are over them
    quick: bool = False  # a few points of each axis
    plots: bool = True  # figures as PNG, which need matplotlib (pip install 'pyprefopt[analysis]')


def run(argv: Sequence[str]) -> None:
    """Run the study that the first word names; without one, list them."""
    from pyprefopt.studies.catalog import STUDIES

    words = [word for word in argv if not word.startswith("--local_rank")]
    if not words or words[0] in ("-h", "--help"):
        print(_overview(STUDIES))
        return
    name = words[0]
    if name == DECODING:
        from pyprefopt.cli.generation.decoding import run as run_decoding

        run_decoding(words[1:])
        return
    show_log()
    with on_all_ranks():
        if name not in STUDIES:
            known = (*STUDIES, DECODING)
            raise ConfigError(f"unknown study '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
        config, own = read(name, STUDIES[name], words[1:])
    show_log(config.log_level)

    from pyprefopt.studies.run import format_summary, run_study

    result = run_study(name, config, **own)
    if is_main():
        print(f"study {name}: {result.cells.height} runs, {result.output_dir}\n{format_summary(result)}")


def read(name: str, study: Study, argv: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The settings that all runs share, and the study's own options, as `run_study` takes them."""
    from pyprefopt.settings.resolve import resolve

    defaults = {"method": study.methods[0], "output_dir": f"runs/study-{name}", **study.settings}
    about = (
        f"{study.title}. The settings of pyprefopt train apply to every run ({', '.join(study.methods)} as --method)."
    )
    axes = _axes(study)
    classes = (axes, _Grid, study.options)
    line = read_run(f"study {name}", argv, *classes, defaults=defaults | _varied(study, {}), about=about)
    names = {cls: [option_name(f) for f in fields(cls)] for cls in classes}
    own = {name: line.given.pop(name) for cls in classes for name in names[cls] if name in line.given}
    options = {name: own.pop(name) for name in names[study.options] if name in own}
    implied = study.settings_of(options)
    lists = {option: list(values) for option, values in own.items() if isinstance(values, tuple)}
    for option, values in lists.items():
        if not values:
            raise ConfigError(f"{option} must have at least one value; write --{option} VALUE VALUE …")
    if line.file.get("overwrite") is False:  # all settings of a run, as they are written out, name it too
        del line.file["overwrite"]
    user = line.file | line.given
    _refuse_varied(name, study, user)
    for setting, value in implied.items():
        if user.get(setting, value) != value:
            words = " ".join(f"--{option} {options[option]}" for option in ("as", "unit") if options.get(option))
            raise ConfigError(f"{setting} must be {value} with {words}, got {user[setting]}; leave one of them out")
    study.check_method(line.method)
    seeds = lists.pop("seeds", None)
    below = nested(defaults | implied | _varied(study, lists))
    config = resolve(below=below, file=nested(line.file), given=nested(line.given), where=str(line.path))
    grid = {"values": lists, "quick": own.get("quick", False), "plots": own.get("plots", True), "seeds": seeds}
    return config, grid | {"options": options}


def _axes(study: Study) -> type:
    """The options that give the values of what a study varies."""
    shown = {axis: " ".join(map(str, axis.quick)) or "none" for axis in study.axes}
    texts = {axis: f"values of {axis.setting or axis.column}; --quick: {shown[axis]}" for axis in study.axes}
    columns = [
        (axis.option, tuple[axis.kind, ...], field(default=axis.values, metadata={"help": texts[axis]}))  # type: ignore[name-defined]
        for axis in study.axes
    ]
    return make_dataclass("Axes", columns)


def _varied(study: Study, values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The first point of the grid, as settings: a run's own settings are checked with it."""
    first = next(study.points({axis.column: values.get(axis.option) or axis.values for axis in study.axes}))
    found = {axis.setting: first[axis.column] for axis in study.axes if axis.setting}
    return {setting: value for setting, value in found.items() if value is not None}


def _refuse_varied(name: str, study: Study, named: Collection[str]) -> None:
    options = {axis.setting: axis.option for axis in study.axes if axis.setting is not None} | {"seed": "seeds"}
    for setting in sorted(options.keys() & named):
        raise ConfigError(
            f"{setting} is what study {name} varies; leave it out and give its values: --{options[setting]} …"
        )
    if "overwrite" in named:
        raise ConfigError("overwrite does not apply to a study, which keeps the policy of every run; leave it out")
    for setting in sorted({*named} & {*study.excludes}):
        raise ConfigError(f"{setting} does not apply to study {name}, which makes it for every run; leave it out")


def _overview(studies: Mapping[str, Study]) -> str:
    titles = {name: study.title for name, study in studies.items()} | {DECODING: ABOUT_DECODING}
    width = max(map(len, titles))
    lines = [f"  {name:{width}}  {title}" for name, title in titles.items()]
    return "\n".join(
        [
            "usage: pyprefopt study NAME [options]        (under DeepSpeed: deepspeed scripts/study.py NAME [options])",
            "",
            *lines,
            "",
            "For example: pyprefopt study ratios --quick",
            "pyprefopt study NAME --help lists a study's own options, and those of train, which it takes too.",
        ]
    )
