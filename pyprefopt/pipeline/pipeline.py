"""The stages that a method needs, in one place, each made when first asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.losses import SFT, Method, SimPO
from pyprefopt.pipeline.given import given_models, of_one_vocabulary, say_strength
from pyprefopt.pipeline.overwrite import check_data, check_key
from pyprefopt.pipeline.preflight import check_excluded, check_given, check_start
from pyprefopt.rewards import DIRECTIONS, Column, Contrastive, NoReward, SimPOReward
from pyprefopt.settings.config import OptimConfig, RunConfig
from pyprefopt.stages.column import build_column, column_stage
from pyprefopt.stages.data import build_data, data_stage, show_rejected
from pyprefopt.stages.models import Source, check_vocabulary, open_model, start_model
from pyprefopt.stages.revision import build_revision, check_differ, revision_stage
from pyprefopt.stages.rewards import build_rewards, rewards_stage
from pyprefopt.stages.scores import (
    build_logps,
    build_scores,
    build_selection,
    logps_stage,
    scores_stage,
    selection_stage,
)  # fmt: skip
from pyprefopt.stages.stage import Artifact, Build, Stage, run_stage
from pyprefopt.stages.training import Training, check_user_weights, run_training
from pyprefopt.stages.transfer import (
    build_moved,
    build_tokens,
    moved_stage,
    own_tokenizer,
    roomy,
    tokens_stage,
    warn_of_two_tokenizers,
)  # fmt: skip
from pyprefopt.training.engine import init_distributed

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer


class Pipeline:
    """The stages of one run. Asking for a stage makes all that it needs, and nothing else.

    `shared`: a folder in which runs with different settings stand beside each other, every artifact by its key.
    `config.cache` is such a folder for all but the policy, and for runs of several processes.
    """

    def __init__(self, config: RunConfig, shared: Path | None = None) -> None:
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.shared = shared
        self.cache = None if config.cache is None else Path(config.cache).expanduser()
        self.made: dict[str, Artifact] = {}  # in the order in which they were asked for
        self._tokenizers: dict[str, Tokenizer | None] = {}  # of models by path; None: the policy's

    def place(self, stage: Stage, *, by_content: bool = False) -> Path:
        """The folder of a stage's artifact; `by_content`: named by its key also in the run's own stages."""
        folder, own = self._folder(stage.name), self.output_dir / "stages"
        named = f"{stage.name}-{stage.key[:12]}"
        return folder / named if folder is not None else own / (named if by_content else stage.name)

    def _folder(self, name: str) -> Path | None:
        """Where a stage called so stands beside those of other runs; None: in the run's own stages."""
        return self.shared if name == "policy" else self.cache or self.shared

    def _run(self, stage: Stage, build: Build, *, label: str | None = None, **options: Any) -> Artifact:
        """Run a stage; with a `label`, its name in messages, what is equal is made once under whatever label."""
        if self.cache is not None and stage.name != "policy":
            options["run"] = str(self.output_dir.resolve())
        directory = self.place(stage, by_content=label is not None)
        artifact = run_stage(stage, directory, build, label=label, **options)
        self.made[label or stage.name] = artifact
        return artifact

    @cached_property
    def data(self) -> Artifact:
        """Segments of every split, and the tokenizer."""
        check_given(self.config)
        data = self._run(data_stage(self.config), lambda directory: build_data(self.config, directory))
        check_excluded(self.config, data)
        if ranks.is_main():
            show_rejected(data, self.output_dir)
        for setting, path in given_models(self.config).items():  # looked at before anything is trained for hours
            if setting in of_one_vocabulary(self.config):
                check_vocabulary(setting, path, data)
            else:  # it scores only, and may have a tokenizer of its own
                self._tokenizers[path] = own_tokenizer(path, data)
        return data

    @cached_property
    def start(self) -> Source:
        """The model as given."""
        return start_model(self.config)

    @cached_property
    def base(self) -> Source:
        """The SFT base: `--base`, or trained from `--model`."""
        config = self.config.base
        if config.path is not None:
            return Source.given(config.path, self.config)
        return self._train("base", config, SFT(), self.start)

    @cached_property
    def base_logps(self) -> Artifact:
        """The base's log-probs in float32: what tokens are scored against."""
        return self.logps_of("base_logps", self._oracle_start)

    @property
    def _oracle_start(self) -> Source:
        """The base, as an oracle is trained from it; where the oracle is given, as it is."""
        return self.base if self.config.oracle.path is not None else self.base.to_train(self.config)

    @cached_property
    def oracle(self) -> Source:
        """The oracle: `--oracle`, or trained from the base by DPO (for rewards simpo, by SimPO)."""
        config, provider, dtype = self.config.oracle, self.config.rewards, self.config.dtype
        if config.path is not None:
            return Source.given(config.path, self.config)
        start, drawn = self._oracle_start, {"fraction": config.fraction, "sample": config.sample}
        if isinstance(provider, SimPOReward):
            method = SimPO(beta=provider.beta, gamma=provider.gamma)
            return self._train("oracle", config, method, start, **drawn)
        ref = self.base_logps if dtype == "float32" else self._logps("oracle_ref", start, dtype)
        return self._train("oracle", config, config.loss, start, ref_logps=ref, **drawn)

    @cached_property
    def scores(self) -> Artifact:
        """Token scores: log pi_oracle - log pi_base."""
        oracle = self.logps_of("oracle_logps", self.oracle)
        warn_of_two_tokenizers(oracle, self.base_logps)
        return self._run(
            scores_stage(oracle, self.base_logps),
            lambda directory: build_scores(self.data, oracle, self.base_logps, directory),
        )

    @cached_property
    def rewards(self) -> Artifact | None:
        """Token rewards of `--rewards`, for the method and as the selection's scores; None without."""
        provider = self.config.rewards
        if isinstance(provider, NoReward):
            return None
        if isinstance(provider, Contrastive):
            check_differ(*(self._revision(direction) for direction in DIRECTIONS))
        inputs = {name: self._reward_input(name) for name in provider.reads if name != "noise"}
        warn_of_two_tokenizers(*inputs.values())
        return self._run(
            rewards_stage(provider, self.data, inputs),
            lambda directory: build_rewards(provider, self.data, inputs, directory),
        )

    def _reward_input(self, name: str) -> Artifact:
        """A provider's column: log-probs of one model on the responses' tokens, in float32, or the data's values."""
        if name == "base":
            return self.base_logps
        if name in ("oracle", "simpo"):
            return self.logps_of("oracle_logps", self.oracle)
        if name == "column":
            return self._column
        if name in DIRECTIONS:
            return self._logps(f"{name}_logps", self._eval_model, "float32", self._revision(name))
        path = self.config.rewards.checkpoints[name]
        return self.logps_of(f"{name}_logps", Source.given(path, self.config))

    @property
    def _column(self) -> Artifact:
        provider = self.config.rewards
        assert isinstance(provider, Column)  # noqa: S101  (nobody else reads one)
        name = provider.column
        return self._run(
            column_stage(name, self.data), lambda directory: build_column(self.config, name, self.data, directory)
        )

    @cached_property
    def _eval_model(self) -> Source:
        """The model that contrastive prompts are put to."""
        provider = self.config.rewards
        assert isinstance(provider, Contrastive)  # noqa: S101  (nobody else has prompts)
        if provider.model == "reference":
            return self._first
        if provider.model == "base":
            return self.base
        return self.oracle if provider.model == "oracle" else Source.given(provider.model, self.config)

    def _revision(self, direction: str) -> Artifact:
        provider = self.config.rewards
        assert isinstance(provider, Contrastive)  # noqa: S101  (nobody else has prompts)
        stage = revision_stage(provider, self.data, direction)
        return self.made.get(stage.name) or self._run(
            stage, lambda directory: build_revision(self.config, provider, self.data, direction, directory)
        )

    @property
    def _first(self) -> Source:
        """What the policy starts from; its reference."""
        return (self.base if self.config.policy_init == "base" else self.start).to_train(self.config)

    @cached_property
    def selection(self) -> Artifact | None:
        """The tokens that the policy is trained on; None where the method takes all."""
        rule, seed = self.config.selection, self.config.seed
        if not rule.active:
            return None
        scores = (self.rewards or self.scores) if rule.needs_scores else None
        return self._run(
            selection_stage(rule, self.data, scores, seed),
            lambda directory: build_selection(rule, self.data, scores, seed, directory),
        )

    @cached_property
    def policy(self) -> Source:
        """The run's method, trained from `--model` or from the base."""
        check_start(self.config)
        config, _ = self.config, self.data  # the data, and what was given, are looked at before anything else
        check_data(config, self.data)
        check_user_weights(config.loss, self.data)
        start, selection, needs = self._first, self.selection, config.loss.needs
        rewards = self.rewards if "token_rewards" in needs else None
        ref = self._logps("ref_logps", start, config.dtype) if "ref_logps" in needs else None
        inputs = {"ref_logps": ref, "selection": selection, "token_rewards": rewards}
        say_strength(config)
        return self._train("policy", config, config.loss, start, **inputs, user_weights=True)

    def _train(self, name: str, optim: OptimConfig, method: Method, start: Source, **inputs: Any) -> Source:
        target = self.output_dir / ("policy" if name == "policy" else f"stages/{name}/model")
        training = Training(name, optim, method, start, self.data, target, **inputs)
        config, stage = self.config, training.stage(self.config)
        if name == "policy":
            check_key(config, stage)
        if self._folder(name) is not None:  # everything in the artifact's folder, its metrics too
            target = self.place(stage) / "model"
            config, training = replace(config, output_dir=str(target.parent)), replace(training, target=target)
        artifact = self._run(
            stage,
            lambda directory: run_training(config, training, directory),
            outputs=[target],
            collective=True,
        )
        return Source(str(target), artifact.fingerprint)

    def logps_of(self, name: str, source: Source, dtype: str = "float32") -> Artifact:
        """Log-probs of any model on the policy's tokens, called `name` in messages and in the summary.

        A model of another tokenizer reads the same texts in its own tokens; its log-probs are then moved to the
        policy's (`data.align.transfer_values`), so that the total of each response is its own.
        """
        tokenizer = self._tokenizer(source)
        if tokenizer is None:
            return self._logps(name, source, dtype)
        config = self.config
        tokens = self._run(
            tokens_stage(self.data, tokenizer),
            lambda directory: build_tokens(config, self.data, tokenizer, source.path, directory),
            label=f"{name}: tokens",
        )
        own = self._logps(f"{name}: own", source, dtype, tokens)
        return self._run(
            moved_stage(self.data, tokens, own),
            lambda directory: build_moved(self.data, tokens, own, directory),
            label=name,
        )

    def _tokenizer(self, source: Source) -> Tokenizer | None:
        """A model's own tokenizer; None where it reads the policy's token ids."""
        data = self.data
        if source.path not in self._tokenizers:
            self._tokenizers[source.path] = own_tokenizer(source.path, data)
        return self._tokenizers[source.path]

    def _logps(self, name: str, source: Source, dtype: str, tokens: Artifact | None = None) -> Artifact:
        """Log-probs of a model on the run's tokens, or on `tokens`: of its own, or in other contexts."""
        data = self.data if tokens is None else tokens
        stage = logps_stage(data, source.fingerprint, dtype)

        def build(directory: Path) -> dict[str, Any]:
            config = self.config if tokens is None else roomy(self.config, tokens)
            model = open_model(config, source, data, dtype=dtype, trained=False).to(init_distributed())
            return build_logps(config, data, model, directory, title=name, key=stage.key)

        return self._run(stage, build, label=name, collective=True)
