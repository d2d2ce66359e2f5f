"""Run by test_zero3: a rank of DeepSpeed ZeRO-3 on the CPU, compared with plain runs; prints the differences."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import deepspeed
import torch
import torch.distributed

from pyprefopt.modeling import LogpsModel, load_model, save_policy
from tests.modeling.models import make_groups, packed_model
from tests.modeling.test_logps import Lora
from tests.reference.packing import pack_groups

# Architecture, LoRA, checkpointing, attention; without packing the ranks have other numbers of calls.
VARIANTS = [
    ("llama", False, False, "auto"), ("llama", True, True, "auto"), ("gemma2", False, True, "auto"),
    ("gpt_neox", False, False, "auto"), ("llama", False, False, "unpacked"), ("qwen2", True, True, "unpacked"),
]  # fmt: skip


class Gathers:
    """How often ZeRO-3 collects `parameter` from the ranks."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, parameter: torch.Tensor) -> None:
        self.count = 0
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        name = "_PartitionedParameterCoordinator__all_gather_params"
        gather = getattr(coordinator, name)

        def counting(params: set[torch.Tensor], *args: object, **kwargs: object) -> None:
            self.count += any(p is parameter for p in params)
            gather(params, *args, **kwargs)

        setattr(coordinator, name, counting)


def compare(name: str, lora: bool, checkpointing: bool, attention: str) -> dict[str, float]:
    from deepspeed.utils import safe_get_full_grad

    options = {"lora": Lora() if lora else None, "gradient_checkpointing": checkpointing, "attention": attention}
    plain, model = packed_model(name, **options), packed_model(name, **options)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    steps = [[pack_groups(make_groups(2 * step + r)[r:]).to() for r in range(world)] for step in range(2)]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # plain gloo, nothing is compiled
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # DeepSpeed's own default is 1.0
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, optimizer=optimizer, config=config)
    reference = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=1e-4)
    result = {"logps": 0.0, "gradients": 0.0, "count": 0, "gathers": 0, "saved": 0.0}
    head = Gathers(engine, engine.module.causal.get_output_embeddings().weight)
    for batches in steps:  # the second step runs on what the first one recorded
        with torch.no_grad():
            scored = engine(batches[rank])
        head.count = 0
        logps, expected = engine(batches[rank]), [plain(batch) for batch in batches]
        result["logps"] = max(
            result["logps"], (logps - expected[rank]).abs().max().item(), (scored - logps).abs().max().item()
        )
        engine.backward(logps.sum())
        result["gathers"] = max(result["gathers"], head.count)
        reference.zero_grad()
        sum(one.sum() / world for one in expected).backward()
        own = dict(plain.named_parameters())
        for key, parameter in engine.module.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter)
                error = ((gradient - own[key].grad).norm() / own[key].grad.norm().clamp_min(1e-12)).item()
                result["gradients"], result["count"] = max(result["gradients"], error), result["count"] + 1
        engine.step()
        reference.step()
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        state = {key: tensor.clone() for key, tensor in engine.module.state_dict().items()}
    if rank == 0:  # the one that writes
        with tempfile.TemporaryDirectory() as directory, torch.no_grad():
            saved = LogpsModel(load_model(save_policy(engine.module, Path(directory) / "policy", state_dict=state)))
            result["saved"] = (saved(steps[0][0]) - plain(steps[0][0])).abs().max().item()
    engine.destroy()
    return result


if __name__ == "__main__":
    results = {" ".join(map(str, variant)): compare(*variant) for variant in VARIANTS}
    print("RESULT", json.dumps(results), flush=True)
    torch.distributed.destroy_process_group()
