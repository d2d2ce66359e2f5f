from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.settings import deepspeed_file
from pyprefopt.settings.config import OptimConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.training.engine import Engine, deepspeed_config
from tests.reference.packing import pack_groups
from tests.training.toy import ToyModel, make_groups


def merged(tmp_path, user, **settings):
    path = tmp_path / "ds.json"
    path.write_text(user if isinstance(user, str) else json.dumps(user))
    run = configure(model="m", data="d", deepspeed=str(path), **settings)
    return deepspeed_config(run, run)


def test_the_users_file_adds_what_ours_leaves_open(tmp_path):
    user = {
        "zero_optimization": {"stage": "auto", "overlap_comm": True},
        "gradient_clipping": 1.0,
        "bf16": {"enabled": "auto"},
        "train_batch_size": 128,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "comms_logger": {"enabled": False},
    }
    config = merged(tmp_path, user, zero_stage=2)
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert config["comms_logger"] == {"enabled": False}
    run = configure(model="m", data="d", zero_stage=2)
    without = deepspeed_config(run, run)
    assert {**config, "zero_optimization": {"stage": 2}} == {**without, "comms_logger": {"enabled": False}}


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, but zero_stage is 2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, but max_grad_norm is 1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, but dtype is 'float32'"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, but dtype is 'float32'"),
        ({"train_batch_size": 64}, "train_batch_size is 64, but global_batch_size is 128"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer cannot be set there"),
        ({"scheduler": {"type": "WarmupLR"}}, "lr_scheduler_type"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "set by dtype"),
        ({"gradient_accumulation_steps": 4}, "global_batch_size"),
        ({"prescale_gradients": "auto"}, 'prescale_gradients is "auto"'),
        ({"zero_optimization": 2}, "zero_optimization is 2"),
        ([], "JSON object, got list"),
        ("{", "is not JSON"),
    ],
)
def test_a_contradiction_names_both_values(tmp_path, user, message):
    with pytest.raises(ConfigError, match=message):
        merged(tmp_path, user, zero_stage=2)


@pytest.mark.parametrize(
    ("name", "stage", "needs"),
    [("offload_optimizer", 0, ">= 1"), ("offload_param", 0, "3"), ("offload_param", 2, "3")],
)
def test_offloading_that_would_not_happen_is_refused(tmp_path, name, stage, needs):
    user = {"zero_optimization": {name: {"device": "cpu"}}}
    with pytest.raises(ConfigError, match=rf"{name} needs zero_stage {needs}, got {stage}; set zero_stage \d, or drop"):
        merged(tmp_path, user, zero_stage=stage)
    assert merged(tmp_path, user, zero_stage=3)["zero_optimization"][name] == {"device": "cpu"}
    merged(tmp_path, {"zero_optimization": {name: {"device": "none"}}}, zero_stage=stage)


def test_a_missing_file_is_named(tmp_path):
    run = configure(model="m", data="d", deepspeed=str(tmp_path / "no.json"))
    with pytest.raises(ConfigError, match=r"no file .*no\.json"):
        deepspeed_config(run, run)


def test_bfloat16_without_zero_is_refused():
    run = replace(configure(model="m", data="d"), dtype="bfloat16")
    with pytest.raises(ConfigError, match="bfloat16 needs zero_stage >= 1"):
        deepspeed_config(run, run)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_weights_after_training_are_whole_and_tied_ones_stay_tied(stage):
    model = ToyModel()
    model.head.weight = model.embedding.weight
    expected = {name: value.detach().clone() for name, value in model.state_dict().items()}
    engine = Engine(model, OptimConfig(), configure(model="m", data="d", zero_stage=stage))
    weights = engine.export_state_dict()
    engine.destroy()
    assert {name: value.tolist() for name, value in weights.items()} == {n: v.tolist() for n, v in expected.items()}
    assert weights["head.weight"] is weights["embedding.weight"]


def test_norms_and_biases_are_not_decayed():
    model = ToyModel()
    batch = pack_groups(make_groups(1)).to()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine = Engine(model, OptimConfig(weight_decay=0.5), configure(model="m", data="d"))
    engine.backward(engine(batch).sum() * 0, last=True)
    engine.step(0.1)
    engine.destroy()
    for name, value in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if value.ndim >= 2 else 1
        torch.testing.assert_close(value, before[name] * factor)


def test_after_destroy_the_model_is_a_plain_one():
    model = ToyModel()
    batch = pack_groups(make_groups(2)).to()
    for stage in (0, 1, 2):  # three engines after one another in one process
        engine = Engine(model, OptimConfig(), configure(model="m", data="d", zero_stage=stage))
        engine.backward(engine(batch).sum(), last=True)
        engine.step(1e-3)
        engine.destroy()
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
        assert all(p.grad is None for p in model.parameters())
    fresh = ToyModel()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(batch), fresh(batch))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gradient_cliping": 1.0}, "DeepSpeed has no setting 'gradient_cliping'; did you mean 'gradient_clipping'?"),
        ({"zero_optimization": {"stag": 2}}, "has no setting 'zero_optimization.stag'; did you mean 'stage'?"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_mem": True}}},
            "has no setting 'zero_optimization.offload_optimizer.pin_mem'; did you mean 'pin_memory'?",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "moon"}}},
            "zero_optimization.offload_optimizer.device: Input should be",
        ),
    ],
)
def test_what_deepspeed_does_not_know_is_told_early(tmp_path, content, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        merged(tmp_path, content, zero_stage=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gradient_clippping": 1.0}, "no setting 'gradient_clippping'; did you mean 'gradient_clipping'?"),
        ({"zero_optimisation": {}}, "no setting 'zero_optimisation'; did you mean 'zero_optimization'?"),
        ({"wallclock": True}, "no setting 'wallclock'; did you mean 'wall_clock_breakdown'?"),
        ({"xyz": 1}, "no setting 'xyz'"),
        ({"aio": {"blocksize": 1}}, "no setting 'aio.blocksize'; did you mean 'block_size'?"),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, "'data_types.grad_acum_dtype'; did you mean 'grad_accum_dtype'?"),
        ({"activation_checkpointing": {"cpu_checkpoint": True}}, "did you mean 'cpu_checkpointing'?"),
        ({"flops_profiler": {"enable": True}}, "'flops_profiler.enable'; did you mean 'enabled'?"),
        ({"timers": {"throughput": {"enable": True}}}, "'timers.throughput.enable'; did you mean 'enabled'?"),
        ({"bf16": {"enable": True}}, "'bf16.enable'; did you mean 'enabled'?"),
        ({"fp16": {"loss_scal": 1}}, "'fp16.loss_scal'; did you mean 'loss_scale'?"),
        ({"comms_logger": {"verbos": True}}, "'comms_logger.verbos'; did you mean 'verbose'?"),
        ({"tensorboard": {"output": "x"}}, "'tensorboard.output'; did you mean 'output_path'?"),
        ({"wandb": {"projekt": "x"}}, "'wandb.projekt'; did you mean 'project'?"),
        ({"csv_monitor": {"jobname": "x"}}, "'csv_monitor.jobname'; did you mean 'job_name'?"),
        ({"zero_optimization": {"reduce_bucket": 5}}, "'zero_optimization.reduce_bucket'; did you mean"),
        ({"zero_optimization": {"stage3_max_live_parameter": 5}}, "did you mean 'stage3_max_live_parameters'?"),
        (
            {"zero_optimization": {"offload_param": {"device": "none", "buffercount": 5}}},
            "'zero_optimization.offload_param.buffercount'; did you mean 'buffer_count'?",
        ),
        (
            {"zero_optimization": {"leaf_module": {"clases": []}}},
            "'zero_optimization.leaf_module.clases'; did you mean 'classes'?",
        ),
        ({"zero_optimization": {"offload_optimizer": {"device": "auto"}}}, 'offload_optimizer.device is "auto", but'),
        ({"aio": {"block_size": "auto"}}, 'aio.block_size is "auto", but'),
        ({"aio": 3}, "aio must be an object with settings, got 3; mend or drop it"),
        ({"bf16": True}, "bf16 is True"),
        ({"steps_per_print": True}, "steps_per_print must be a whole number or null, got True; mend or drop it"),
        ({"wall_clock_breakdown": 1}, "wall_clock_breakdown must be true or false, got 1"),
        ({"gradient_clipping": True}, "gradient_clipping is True, but max_grad_norm is 1.0"),
        ({"zero_optimization": {"stage": 2.5}}, "zero_optimization.stage is 2.5"),
        ({"compression_training": {}}, "compression_training cannot be set there: it changes what is trained"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op cannot be set there: gradients are averaged"),
        ('{"steps_per_print": 1, "steps_per_print": 2}', "steps_per_print is given twice; keep one of the two"),
        ('{"aio": {"block_size": 1, "block_size": 2}}', "block_size is given twice"),
        ('{"gradient_clipping": Infinity}', "Infinity is no number of JSON's"),
        ('{"gradient_clipping": NaN}', "NaN is no number of JSON's"),
        ('{"gradient_clipping": 1e999}', "gradient_clipping is inf"),
        ("[" * 100_000, "is not JSON"),
        ("\x00\x01", "is not JSON"),
    ],
)
def test_what_the_file_may_not_hold_is_told_at_every_depth(tmp_path, content, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        merged(tmp_path, content, zero_stage=2)


def test_the_table_is_deepspeeds():
    """Names of sections that DeepSpeed reads without a model of its own, as they are there."""
    from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    known = deepspeed_file._SETTINGS
    assert set(known["aio"]) == set(AIO_DEFAULT_DICT)
    assert set(known["activation_checkpointing"]) == set(ACT_CHKPT_DEFAULT)
    profiler = vars(DeepSpeedConfig({"train_batch_size": 1}).flops_profiler_config)
    assert set(known["flops_profiler"]) == set(profiler)


def test_every_name_that_deepspeed_reads_is_known():
    from deepspeed.runtime.config import DeepSpeedConfig

    asked = set()

    class Asked(dict):
        def __contains__(self, name):
            asked.add(name)
            return super().__contains__(name)

        def get(self, name, *otherwise):
            asked.add(name)
            return super().get(name, *otherwise)

    DeepSpeedConfig(Asked({"train_batch_size": 1}))
    run = configure(model="m", data="d")
    batches = {"train_batch_size", "train_micro_batch_size_per_gpu"}  # compared with ours
    known = {*deepspeed_file._SETTINGS, *deepspeed_file._REFUSED, *deepspeed_file.SECTIONS}
    assert len(asked) > 40
    assert asked - {*deepspeed_config(run, run), *batches} <= known


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"{'a': 1}", b"null"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    run = configure(model="m", data="d", deepspeed=str(path))
    with pytest.raises(ConfigError, match=r"ds\.json (is not JSON|must hold a JSON object)"):
        deepspeed_config(run, run)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory; give a file, not a folder$"):
        deepspeed_config(replace(run, deepspeed=str(tmp_path)), run)


def test_a_port_in_use_is_named():
    """In a process of its own: this one may have joined its group."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code = "from pyprefopt.training.engine import init_distributed; init_distributed()"
        keep = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
        environment = keep | {"MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert f"TrainingError: master_port must be a free port, and {port} is in use" in done.stderr
