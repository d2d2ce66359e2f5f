"""Room on the disk for all that a run will write, looked at once its data is there and before anything is trained."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyprefopt import ranks
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ArtifactError, ConfigError, counted
from pyprefopt.modeling.checkpoints.adapters import add_lora
from pyprefopt.modeling.checkpoints.load import DTYPES, Head, sketch_model
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.config import OptimConfig
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.logps import Logps
from pyprefopt.stages.models import Source
from pyprefopt.stages.revision import Revision
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.stages.training import Training
from pyprefopt.stages.transfer import Tokens
from pyprefopt.storage.files import free_bytes, nearest, show_bytes, used_bytes
from pyprefopt.storage.folders import Folder
from pyprefopt.training.schedule import total_steps

if TYPE_CHECKING:
    from pyprefopt.losses import Method

VALUE, TOKEN = 4, 24  # bytes of a token in a store of values, and in one of segments at most


@dataclass(frozen=True)
class Room:
    """Bytes that a stage writes: those that stay, and those that are there only while it is made."""

    stays: int
    passing: int = 0
    text: str = ""  # what they are, for the error


class Plan(Pipeline):
    """The stages of a run that are still to be made, found without making any."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline.config, pipeline.shared, replaces=pipeline.replaces)
        self.pipeline = pipeline
        self.missing: dict[Path, Stage] = {}  # by the folders that they will be in
        self.origins: dict[str, str] = {}  # of models that are not trained yet: what they are trained from
        self._tokenizers = dict(pipeline._tokenizers)

    @cached_property
    def data(self) -> Artifact:
        """The run's data, which is made."""
        return self.pipeline.data

    @cached_property
    def checked(self) -> None:
        """What the run has looked at."""
        return self.pipeline.checked

    def run(self, stage: Stage) -> Artifact:
        """The artifact of a stage that is there, or one of which nothing but the key is known."""
        place = self._place(stage)
        manifest = Folder(place).made_for(stage.key)
        if manifest is None:
            self.missing[place] = stage
            manifest = {"key": stage.key, "reads": stage.reads}
        self.made[stage.title] = artifact = Artifact(stage.title, place, manifest, reused=place not in self.missing)
        return artifact

    def _train(self, name: str, optim: OptimConfig, method: Method, start: Source, **reads: Any) -> Source:
        """The model as it will be; of one vocabulary with the run's."""
        source = super()._train(name, optim, method, start, **reads)
        self.origins[source.path] = self.origin(start.path)
        self._tokenizers[source.path] = None  # it reads the policy's token ids
        return source

    def origin(self, path: str) -> str:
        """The model that is there, of which another one is trained."""
        return self.origins.get(path, path)

    def _check_revisions(self) -> None:
        """They are compared when they are made."""

    def _check_policy(self, stage: Stage) -> None:
        """Its key is known when all that it reads is made."""

    def rooms(self) -> dict[Path, Room]:
        """What each missing stage needs."""
        tokens = sum(int(store.lengths[store.segments != 0].sum()) for _, store in open_splits(self.data))
        return {place: self._room(stage, tokens) for place, stage in self.missing.items()}

    def _room(self, stage: Stage, tokens: int) -> Room:
        """tokens: of all responses."""
        if isinstance(stage, Training):
            return self._room_of_training(stage)
        if isinstance(stage, Tokens | Revision):
            return Room(TOKEN * sum(int(store.lengths.sum()) for _, store in open_splits(self.data)), 0, stage.title)
        return Room(VALUE * tokens, VALUE * tokens if isinstance(stage, Logps) else 0, stage.title)

    def _room_of_training(self, stage: Training) -> Room:
        """The model, and the checkpoints that are kept; one more is there while it is written."""
        config, title = self.config, stage.title
        size = _Size.of(stage, self.origin(stage.start.path), trust_remote_code=config.trust_remote_code)
        rows = SegmentStore.open(self.data.directory / stage.split).num_rows
        steps = total_steps(stage.optim, -(-max(1, round(stage.fraction * rows)) // stage.optim.global_batch_size))
        saves = steps // config.save_steps if config.save_steps else 0
        kept = min(saves, config.save_total_limit + bool(config.eval_steps))
        most = min(saves, kept + 1)
        text = f"{title} {show_bytes(size.model)}"
        if most:
            text += f", its {counted(most, 'checkpoint')} of {show_bytes(size.checkpoint)}"
        passing = max(0, (most - kept) * size.checkpoint - size.model)
        return Room(size.model + kept * size.checkpoint, passing, text)


@dataclass(frozen=True)
class _Size:
    """Bytes of a trained model, and of a checkpoint of its training on all ranks together."""

    model: int
    checkpoint: int

    @classmethod
    def of(cls, stage: Training, path: str, *, trust_remote_code: bool) -> _Size:
        """From the model without its numbers; from its files where its code cannot do without them."""
        head: Head = "reward" if "reward_head" in stage.method.needs else "language"
        width = torch.empty(0, dtype=DTYPES[stage.dtype]).element_size()
        optimizer = 4 * (2 if width == 4 else 3)  # two moments, and a float32 copy of what is not float32
        try:
            plain = sketch_model(path, trust_remote_code=trust_remote_code, head=head)
            numbers = sum(p.numel() for p in plain.parameters())
            model = add_lora(plain, stage.lora) if stage.lora.r > 0 else plain
        except ConfigError:
            raise
        except Exception:
            size = used_bytes(resolve_source(path, trust_remote_code=trust_remote_code))
            return cls(size, size * (width + optimizer) // width)
        whole = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        adapter = (whole - numbers) * width
        frozen = (whole - trained) * (width if not stage.lora.load_in_4bit else 1)
        return cls(numbers * width + adapter, frozen + trained * (width + optimizer))


def check_room(pipeline: Pipeline, *, policy: bool = True) -> None:
    """Compare what a run will write with what is free on each disk; every rank calls this.

    Args:
        pipeline: of the run, whose data is made where it is missing.
        policy: whether the policy is trained; else token rewards are all that is wanted.

    Raises:
        ArtifactError: a disk has too little room; names both figures.
    """
    pipeline.checked if policy else pipeline.data  # noqa: B018
    if not ranks.is_main():
        return
    plan = Plan(pipeline)
    plan.policy if policy else plan.rewards  # noqa: B018
    disks: dict[int, list[tuple[Path, Room]]] = defaultdict(list)
    for place, room in plan.rooms().items():
        disks[nearest(place).stat().st_dev].append((place, room))
    for parts in disks.values():
        place = pipeline.output_dir if parts[0][0].is_relative_to(pipeline.output_dir) else parts[0][0].parent
        there = sum(used_bytes(folder) for folder, _ in parts)  # a killed run's, which goes on or is cleared away
        needed = sum(room.stays for _, room in parts) + max(room.passing for _, room in parts)
        free = free_bytes(place)
        if needed - there > free:
            largest = sorted(parts, key=lambda part: -part[1].stays)[:3]
            raise ArtifactError(
                f"{place} needs {show_bytes(needed - there)} more on its disk, where {show_bytes(free)} are free "
                f"({'; '.join(room.text for _, room in largest)}): make room, choose another output_dir, or lower "
                "save_total_limit"
            )
