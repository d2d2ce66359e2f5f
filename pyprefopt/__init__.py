"""pyprefopt: token-level preference optimization of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyprefopt.lazy import lazy_names
from pyprefopt.version import __version__ as __version__

if TYPE_CHECKING:  # loaded on first use, so that `import pyprefopt` needs neither torch nor Polars
    from pyprefopt import data as data
    from pyprefopt import losses as losses
    from pyprefopt import modeling as modeling
    from pyprefopt import rewards as rewards
    from pyprefopt import stages as stages
    from pyprefopt.generation.generate import generate as generate
    from pyprefopt.pipeline.evaluations.accuracy import evaluate_accuracy as evaluate_accuracy
    from pyprefopt.pipeline.evaluations.kl import evaluate_kl as evaluate_kl
    from pyprefopt.pipeline.run import RunResult as RunResult
    from pyprefopt.pipeline.run import train as train
    from pyprefopt.pipeline.trials.check import check_method as check_method
    from pyprefopt.settings.config import RunConfig as RunConfig
    from pyprefopt.settings.resolve import configure as configure
    from pyprefopt.settings.resolve import load_config as load_config
    from pyprefopt.studies.run import run_study as run_study

__getattr__, __dir__ = lazy_names(__name__, __file__)
