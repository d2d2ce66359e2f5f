"""The stages of a run, each made when first asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.losses import Method, SimPO
from pyprefopt.pipeline.overwrite import REPLACEMENT, check_data, check_key
from pyprefopt.pipeline.preflight import (
    check_excluded,
    check_given,
    check_start,
    check_tokenizers,
    check_user_weights,
    log_reward_strength,
)
from pyprefopt.rewards import DIRECTIONS, Column, Contrastive, NoReward, SimPOReward
from pyprefopt.settings.config import OptimConfig, RunConfig
from pyprefopt.settings.rules import compares_oracle, oracle_starts_from, trains_oracle
from pyprefopt.stages.data import Data, rows_hash, show_rejected
from pyprefopt.stages.logps import Logps
from pyprefopt.stages.models import Source, start_model
from pyprefopt.stages.revision import Revision, check_differ
from pyprefopt.stages.rewards import DataColumn, Rewards
from pyprefopt.stages.saved_tokenizer import check_saved
from pyprefopt.stages.scores import Scores, SelectedTokens
from pyprefopt.stages.stage import Artifact, Stage, run_stage
from pyprefopt.stages.training import Training, optim_of
from pyprefopt.stages.transfer import Moved, Tokens, own_tokenizer, warn_of_two_tokenizers
from pyprefopt.storage.folders import Folder

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer


class Pipeline:
    """The stages of one run. Asking for a stage makes all that it needs, and nothing else.

    Args:
        config: the run; `config.cache` is a shared folder for all but the policy, and for runs of several processes.
        shared: a folder in which runs with different settings stand beside each other, every artifact by its key;
            None: the stages are in the run's own folder.
        replaces: whether what is made goes to the folder REPLACEMENT of the run's own; what fits there is used again.
    """

    def __init__(self, config: RunConfig, shared: Path | None = None, *, replaces: bool = False) -> None:
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.replaces = replaces
        self.target = self.output_dir / REPLACEMENT if replaces else self.output_dir  # of what is made
        self.shared = shared
        self.cache = None if config.cache is None else Path(config.cache).expanduser()
        self.made: dict[str, Artifact] = {}  # in the order in which they were asked for
        self._tokenizers: dict[str, Tokenizer | None] = {}  # of models by path; None: the policy's

    @cached_property
    def data(self) -> Artifact:
        """Segments of every split, and the tokenizer."""
        check_given(self.config)
        data = self.run(Data.of(self.config))
        check_excluded(self.config, data)
        if ranks.is_main():
            show_rejected(data, self.target)
        self._tokenizers |= check_tokenizers(self.config, data)
        check_saved(self.config, data)
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
        drawn = {"fraction": config.fraction, "sample": config.sample}
        return self._train("base", config, config.loss, self.start, **drawn)

    @cached_property
    def base_logps(self) -> Artifact:
        """Log-probs in float32 of what the oracle starts from: what tokens are scored against."""
        return self.logps_of("base_logps", self._oracle_start)

    @property
    def _oracle_start(self) -> Source:
        """The base or the model, as an oracle is trained from it; where the oracle is given, as it is."""
        source = self.start if oracle_starts_from(self.config) == "model" else self.base
        return source if self.config.oracle.path is not None else source.to_train(self.config)

    @cached_property
    def oracle(self) -> Source:
        """The oracle: `--oracle`, or trained from the base or the model by DPO (for rewards simpo, by SimPO)."""
        config, provider, start = self.config.oracle, self.config.rewards, self._oracle_start
        if config.path is not None:
            return Source.given(config.path, self.config)
        drawn = {"fraction": config.fraction, "sample": config.sample}
        if isinstance(provider, SimPOReward):
            return self._train("oracle", config, SimPO(beta=provider.beta, gamma=provider.gamma), start, **drawn)
        dtype = self.config.dtype
        ref = self.base_logps if dtype == "float32" else self._logps("oracle_ref", start, dtype=dtype)
        return self._train("oracle", config, config.loss, start, ref_logps=ref, **drawn)

    @cached_property
    def scores(self) -> Artifact:
        """Token scores: log pi_oracle - log pi_base."""
        oracle, base = self.logps_of("oracle_logps", self.oracle), self.base_logps
        warn_of_two_tokenizers(oracle, base)
        return self.run(Scores(data=self.data, oracle=oracle, base=base))

    @cached_property
    def rewards(self) -> Artifact | None:
        """Token rewards of `--rewards`, for the method and as the selection's scores; None without."""
        provider = self.config.rewards
        if isinstance(provider, NoReward):
            return None
        if isinstance(provider, Contrastive):
            self._check_revisions()
        columns = {name: self._column(name) for name in provider.reads if name != "noise"}
        warn_of_two_tokenizers(*columns.values())
        compared = trains_oracle(self.config) or compares_oracle(self.config)
        oracle = (self.logps_of("oracle_logps", self.oracle), self.base_logps) if compared else None
        return self.run(Rewards(data=self.data, provider=provider, columns=columns, oracle=oracle))

    def _check_revisions(self) -> None:
        check_differ(*(self.revision(direction) for direction in DIRECTIONS))

    def _column(self, name: str) -> Artifact:
        """What a provider reads: log-probs of one model on the responses' tokens, in float32, or the data's values."""
        provider = self.config.rewards
        if isinstance(provider, Column):
            return self.run(DataColumn(data=self.data, rows=rows_hash(self.data), column=provider.column))
        if isinstance(provider, Contrastive):
            return self._logps(f"{name}_logps", self._eval_model(provider), self.revision(name))
        if name == "base":
            return self.base_logps
        if name in ("oracle", "simpo"):
            return self.logps_of("oracle_logps", self.oracle)
        return self.logps_of(f"{name}_logps", Source.given(provider.checkpoints[name], self.config))

    def _eval_model(self, provider: Contrastive) -> Source:
        """The model that contrastive prompts are put to."""
        if provider.model == "reference":
            return self.reference
        if provider.model == "base":
            return self.base
        return self.oracle if provider.model == "oracle" else Source.given(provider.model, self.config)

    def revision(self, direction: str) -> Artifact:
        """Every response behind the contrastive prompt `better` or `worse`."""
        provider = self.config.rewards
        assert isinstance(provider, Contrastive)  # noqa: S101  (nobody else has prompts)
        stage = Revision.of(provider, self.data, direction)
        return self.made.get(stage.title) or self.run(stage)

    @property
    def reference(self) -> Source:
        """What the policy starts from; its reference."""
        return (self.base if self.config.policy_init == "base" else self.start).to_train(self.config)

    @cached_property
    def selection(self) -> Artifact | None:
        """The tokens that the policy is trained on; None where the method takes all."""
        rule = self.config.selection
        if not rule.active:
            return None
        if not rule.needs_scores:
            return self.run(SelectedTokens(data=self.data, rule=rule, scores=None, seed=self.config.seed))
        return self.run(SelectedTokens(data=self.data, rule=rule, scores=self.rewards or self.scores, seed=0))

    @cached_property
    def checked(self) -> None:
        """What is given, and the data, are looked at before anything else."""
        check_start(self.config)
        check_data(self.config, self.data)
        check_user_weights(self.config.loss, self.data)

    @cached_property
    def policy(self) -> Source:
        """The run's method, trained from `--model` or from the base."""
        self.checked  # noqa: B018
        config = self.config
        start, selection, needs = self.reference, self.selection, config.loss.needs
        rewards = self.rewards if "token_rewards" in needs else None
        ref = self._logps("ref_logps", start, dtype=config.dtype) if "ref_logps" in needs else None
        return self._train(
            "policy", config, config.loss, start, ref_logps=ref, selection=selection, token_rewards=rewards,
            user_weights=self.data.manifest.get("weights"),
        )  # fmt: skip

    def _train(self, name: str, optim: OptimConfig, method: Method, start: Source, **reads: Any) -> Source:
        """A model trained from `start`."""
        config = self.config
        stage = Training(
            name=name, data=self.data, start=start, method=method, optim=optim_of(optim), dtype=config.dtype,
            lora=config.lora, seed=config.seed, output_dir=None if self._shared(name) else self.output_dir, **reads,
        )  # fmt: skip
        if stage.output_dir is not None and self._place(stage).is_relative_to(self.target):
            stage = replace(stage, output_dir=self.target)
        if name == "policy":
            self._check_policy(stage)
        artifact = self.run(stage)
        return Source(str(stage.model_path(artifact.directory)), artifact.fingerprint)

    def _check_policy(self, stage: Stage) -> None:
        check_key(self.config, stage)
        log_reward_strength(self.config)

    def logps_of(self, name: str, source: Source, dtype: str = "float32") -> Artifact:
        """Log-probs of any model on the policy's tokens, called `name` in messages and in the summary.

        A model of another tokenizer reads the same texts in its own tokens; its log-probs are then moved to the
        policy's (`data.align.transfer_values`), so that the total of each response is its own.
        """
        tokenizer, data = self._tokenizer(source), self.data
        if tokenizer is None:
            return self._logps(name, source, dtype=dtype)
        tokens = self.run(
            Tokens(label=f"{name}: tokens", data=data, rows=rows_hash(data), tokenizer=tokenizer, model=source.path)
        )
        own = self._logps(f"{name}: own", source, tokens, dtype)
        return self.run(Moved(label=name, data=data, tokens=tokens, logps=own))

    def _tokenizer(self, source: Source) -> Tokenizer | None:
        """A model's own tokenizer; None where it reads the policy's token ids."""
        data = self.data
        if source.path not in self._tokenizers:
            self._tokenizers[source.path] = own_tokenizer(source.path, data)
        return self._tokenizers[source.path]

    def _logps(self, name: str, source: Source, tokens: Artifact | None = None, dtype: str = "float32") -> Artifact:
        """Log-probs of a model on the run's tokens, or on `tokens`: of its own, or in other contexts."""
        return self.run(Logps(label=name, data=tokens or self.data, model=source, dtype=dtype))

    def run(self, stage: Stage) -> Artifact:
        """The artifact of a stage, found or made."""
        owner = str(self.output_dir.resolve()) if self.cache is not None and stage.name != "policy" else None
        self.made[stage.title] = artifact = run_stage(stage, self._place(stage), self.config, run=owner)
        return artifact

    def _place(self, stage: Stage) -> Path:
        """The folder of a stage's artifact; that of a stage of which there are several has its key in its name."""
        shared, named = self._shared(stage.name), f"{stage.name}-{stage.key[:12]}"
        if shared is not None:
            return shared / named
        name = named if stage.label else stage.name
        old = self.output_dir / "stages" / name
        return old if self.replaces and Folder(old).made_for(stage.key) else self.target / "stages" / name

    def _shared(self, name: str) -> Path | None:
        """Where a stage called so stands beside those of other runs; None: in the run's own stages."""
        return self.shared if name == "policy" else self.cache or self.shared
