"""DeepSpeed, and nothing else here or elsewhere: one engine trains one model."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.errors import ConfigError, TrainingError, counted
from pyprefopt.ranks import is_main, local_rank, world_size
from pyprefopt.settings.config import OptimConfig, RunConfig
from pyprefopt.settings.deepspeed_file import SECTIONS, unknown_name, with_file
from pyprefopt.settings.values import kinds_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pyprefopt.types import Outputs, PackedBatch

_NORM_PART = 1 << 22  # numbers whose squares exist at once
_TAG = "deepspeed"  # DeepSpeed's name of the folder inside a checkpoint
logger = logging.getLogger("pyprefopt")

_NOT_READ = frozenset({  # of DeepSpeed's state, what it writes for other programs, or as objects
    "buffer_names", "ds_config", "frozen_param_shapes", "loss_scaler", "param_shapes", "param_slice_mappings",
    "shared_params",
})  # fmt: skip


def init_distributed() -> torch.device:
    """Join the process group (nccl on CUDA, gloo on CPU; once per process) and give this rank's device.

    Ranks come from the launcher's environment; a plain `python` process becomes rank 0 of 1.
    """
    import torch

    on_gpu = _on_gpu()
    if not on_gpu and is_main() and "RANK" in os.environ and not torch.distributed.is_initialized():
        logger.info("there is no GPU here: %s on the CPU", counted(world_size(), "rank"))
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (alone | {"MASTER_PORT": "0"}).items():  # port 0: any free one, taken as it is found
        os.environ.setdefault(name, value)
    device = torch.device("cuda", local_rank()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    import deepspeed

    debug = logging.getLogger("pyprefopt").isEnabledFor(logging.DEBUG)
    logging.getLogger("DeepSpeed").setLevel(logging.INFO if debug else logging.ERROR)
    if not on_gpu:  # would be compiled with g++ for half a minute at the first collective; gloo is enough
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        try:
            deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
        except torch.distributed.DistNetworkError as error:
            raise TrainingError(_unreachable(error)) from error
        atexit.register(close)
    return device


def _on_gpu() -> bool:
    """Whether training is on a GPU; where not, DeepSpeed learns it before it is imported."""
    import torch

    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    return on_gpu


def _unreachable(error: Exception) -> str:
    """What to do where the ranks cannot meet."""
    port, first = os.environ["MASTER_PORT"], str(error).splitlines()[0]
    if "EADDRINUSE" in str(error):
        return (
            f"master_port must be a free port, and {port} is in use, perhaps by another run; give another one: "
            "deepspeed --master_port N scripts/train.py …"
        )
    return f"the ranks cannot meet at {os.environ['MASTER_ADDR']}:{port}: {first}; look at deepspeed --master_addr"


def close() -> None:
    """Leave the process group; at the very end of the process, since DeepSpeed joins only once."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def deepspeed_config(run: RunConfig, optim: OptimConfig) -> dict[str, Any]:
    """DeepSpeed's settings for a stage: ours, and those of the user's file (`run.deepspeed`) that ours leave open.

    "auto" in the file takes ours.

    Raises:
        ConfigError: a value of the file that contradicts ours, named with it; or bfloat16 without ZeRO, where
            DeepSpeed's first Adam update is wrong.
    """
    if run.dtype == "bfloat16" and run.zero_stage == 0:
        raise ConfigError("dtype bfloat16 needs zero_stage >= 1, got 0; set zero_stage 1, or dtype float32")
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # never used: the loader packs by tokens, `backward` marks the last
        "gradient_clipping": optim.max_grad_norm,
        "zero_optimization": {"stage": run.zero_stage},
        "zero_force_ds_cpu_optimizer": False,  # offloading works with torch's AdamW
        "fp16": {"enabled": False},
        "bf16": {"enabled": run.dtype == "bfloat16"},
    }
    if run.dtype == "bfloat16":
        ours["bf16"]["check_grad_overflow"] = True  # a step with non-finite gradients is not applied
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    if run.deepspeed is None:
        return ours
    merged = with_file(ours, run, optim)
    _check_sections(merged, run.deepspeed)
    _check_offload(merged["zero_optimization"], run)
    return merged


def _check_sections(config: Mapping[str, Any], path: str) -> None:
    """ConfigError for names and values that DeepSpeed would refuse only when a stage begins, at any depth."""
    from pydantic import ValidationError

    _on_gpu()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models: tuple[Any, ...] = (
        DeepSpeedZeroConfig, DeepSpeedFP16Config, DeepSpeedBF16Config,
        CommsLoggerConfig, TensorBoardConfig, WandbConfig, CSVConfig, CometConfig,
    )  # fmt: skip
    for section, model in zip(SECTIONS, models, strict=True):
        given = config.get(section, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: {section} must be an object with settings, got {given!r}; mend or drop it")
        try:
            model(**given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([section, *map(str, first["loc"])])
            if first["type"] == "extra_forbidden":
                raise unknown_name(path, where, _names_at(model, first["loc"][:-1])) from None
            raise ConfigError(f"{path}: {where}: {first['msg']}, got {first['input']!r}; mend or drop it") from None


def _names_at(model: Any, place: Sequence[Any]) -> dict[str, None]:
    """The names that a section of DeepSpeed's takes, inside of it at `place`."""
    for name in place:
        fields = {field.alias or own: field for own, field in model.model_fields.items()}
        kinds = kinds_of(fields[name].annotation)
        model = next(kind for kind in kinds if hasattr(kind, "model_fields"))
    return {field.alias or own: None for own, field in model.model_fields.items()}


def _check_offload(zero: Mapping[str, Any], run: RunConfig) -> None:
    """ConfigError for offloading that DeepSpeed would leave undone at this stage."""
    for name, stage in (("offload_optimizer", 1), ("offload_param", 3)):
        given = zero.get(name)
        if given and given.get("device", "none") != "none" and run.zero_stage < stage:
            raise ConfigError(
                f"{run.deepspeed}: zero_optimization.{name} needs zero_stage {'3' if stage == 3 else '>= 1'}, got "
                f"{run.zero_stage}; set zero_stage {stage}, or drop it"
            )


def _state_files(optimizer: Any) -> Any:
    """DeepSpeed's way to its files, without pickle: only what it reads again is written, as safetensors."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    from pyprefopt.modeling.checkpoints.state import load_state, save_state

    class StateFiles(TorchCheckpointEngine):  # type: ignore[misc]
        failure: OSError | None = None  # the first; raised amid DeepSpeed's collectives, it would keep ranks waiting

        def save(self, state_dict: dict[str, Any], path: str) -> None:
            state = {name: value for name, value in state_dict.items() if name not in _NOT_READ}
            if isinstance(inner := state.get("optimizer_state_dict"), dict):
                state["optimizer_state_dict"] = {n: value for n, value in inner.items() if n not in _NOT_READ}
            try:
                save_state(state, path)
            except OSError as error:
                self.failure = self.failure or error

        def load(self, path: str, map_location: object = None) -> Any:  # noqa: ARG002  (all of it is for the CPU)
            state = load_state(path)
            if isinstance(inner := state.get("optimizer_state_dict"), dict) and hasattr(optimizer, "loss_scaler"):
                inner["loss_scaler"] = optimizer.loss_scaler  # without fp16, 1 for ever
            return state

    return StateFiles()


class Engine:
    """A DeepSpeed engine around `model` with torch's AdamW; a step has any number of micro-batches."""

    def __init__(self, model: nn.Module, optim: OptimConfig, run: RunConfig) -> None:
        self.device = init_distributed()
        import deepspeed
        import torch

        self._stage, self._clip = run.zero_stage, optim.max_grad_norm
        optimizer = torch.optim.AdamW(
            list(_parameter_groups(model, optim.weight_decay)),
            lr=optim.learning_rate,
            betas=(optim.adam_beta1, optim.adam_beta2),
            eps=optim.adam_epsilon,
            fused=True if self.device.type == "cpu" else None,  # one pass over the weights, 8 times as fast there
        )
        self._optimizer = optimizer
        config = deepspeed_config(run, optim)
        with contextlib.redirect_stdout(io.StringIO()):  # ZeRO 1 in bfloat16 prints its memory use
            self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self._engine.checkpoint_engine = _state_files(self._engine.optimizer)
        self._engine._copy_recovery_script = lambda _: None  # it reads DeepSpeed's own files, of which there are none
        if self._stage == 0 and world_size() == 1:  # DeepSpeed would copy all gradients there and back
            self._engine.enable_backward_allreduce = False
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def __call__(self, batch: PackedBatch) -> Tensor | Outputs:
        """What the model gives: log-probs [M], or Outputs."""
        given: Tensor | Outputs = self._engine(batch)
        return given

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return bool(self._engine.training)

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode of the model."""
        self._engine.train(mode)

    def eval(self) -> None:
        """Evaluation mode of the model."""
        self.train(False)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`; gradients are averaged over ranks at the step's `last` micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Update the weights, unless the gradient is not finite.

        Returns:
            The gradient's global norm before clipping; where it is not finite, nothing has been updated.
        """
        norm = self._gradient_norm() if self._stage == 0 else None
        if norm is not None and not math.isfinite(norm):
            return norm
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
            if not self._engine.was_step_applied():
                return math.nan
        return norm

    def _gradient_norm(self) -> float:
        """The norm that DeepSpeed does not give at ZeRO 0; gradients are averaged and whole on every rank."""
        import torch

        squares = []
        for parameter in self._engine.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # as DeepSpeed does where there are several ranks
            if parameter.grad is not None:
                squares += [part.float().square().sum() for part in parameter.grad.reshape(-1).split(_NORM_PART)]
        return float(torch.stack(squares).sum().sqrt())

    def save(self, directory: Path) -> None:
        """Write weights and optimizer state; OSError where this rank cannot. Every rank calls this."""
        files = self._engine.checkpoint_engine
        files.failure = None
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)
        if files.failure is not None:
            raise files.failure

    def load(self, directory: Path) -> None:
        """Read what `save` wrote. Every rank calls this."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what kind of state it finds
            self._engine.load_checkpoint(str(directory), tag=_TAG)

    def export_state_dict(self) -> dict[str, Tensor] | None:
        """All weights on the CPU, on rank 0 (None elsewhere). Every rank calls this. Tied weights stay one tensor."""
        import deepspeed

        weights: dict[str, Tensor] = {}
        seen: dict[int, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters(remove_duplicate=False):
            if id(parameter) not in seen:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
                    whole = parameter.detach()
                    seen[id(parameter)] = whole.cpu().clone() if is_main() else whole.new_empty(0)
            weights[name] = seen[id(parameter)]
        persistent = set(self._engine.module.state_dict())
        for name, buffer in self._engine.module.named_buffers():
            if name in persistent:
                weights[name] = buffer.detach().cpu()
        return weights if is_main() else None

    def destroy(self) -> None:
        """Free everything, so that the next stage can build its engine in this process."""
        import torch

        self._engine.destroy()
        for hook in ("module_forward_pre_hook", "module_forward_post_hook"):  # they would call the dead engine
            if hasattr(self._engine, hook):
                getattr(self._engine, hook).remove()
        self._engine.module.zero_grad(set_to_none=True)
        del self._engine, self._optimizer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _parameter_groups(model: nn.Module, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Matrices are decayed; norms and biases are not, as usual. One group where there is no decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if weight_decay == 0:
        yield {"params": trained, "weight_decay": 0.0}
        return
    yield {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay}
    if flat := [p for p in trained if p.ndim < 2]:
        yield {"params": flat, "weight_decay": 0.0}
