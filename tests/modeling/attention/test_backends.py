from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model
from pyprefopt.modeling.attention import backends, flex, loop, varlen
from pyprefopt.modeling.attention.backends import Demand, Way, choose
from pyprefopt.modeling.attention.layout import PackedLayout, Rule
from pyprefopt.modeling.attention.packed import WAY_SETTING, packed_attention
from tests.modeling.attention.kernels import KERNELS
from tests.modeling.attention.test_packed import states
from tests.modeling.models import ARCHITECTURES, LAYOUTS, make_groups, packed_model, shake, write_config
from tests.modeling.test_logps import weighted_gradients
from tests.reference.packing import pack_groups

CUDA = torch.device("cuda", 0)
PLAIN = Rule(0.125)
TWINS = {name: varlen.Kernel.of(twin) for name, twin in KERNELS.items()}


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    choose.cache_clear()
    yield
    choose.cache_clear()


def demand(**changes: object) -> Demand:
    given = {"device": CUDA, "dtype": torch.bfloat16, "head_size": 64, "heads": 4, "key_heads": 2, "rule": PLAIN}
    return Demand(**(given | changes))


def machine(
    monkeypatch: pytest.MonkeyPatch, *, flash: str | None = None, torch_version: str | None = "torch 2.12",
    capability: tuple[int, int] = (9, 0), trial: Callable[[Way, Demand], str | None] = lambda way, demand: None,
) -> None:  # fmt: skip
    """A machine with a GPU, as far as the rule asks."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(backends, "trial", trial)
    for name, kernel in (("flash", flash), ("varlen", torch_version)):
        way = backends._document_way(lambda kernel=kernel: TWINS.get(kernel), f"{name} is missing", "it is there")
        monkeypatch.setitem(backends.WAYS, name, way)


def chosen(wanted: str, asked: Demand, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """The name of the way, and the line that says so."""
    with caplog.at_level(logging.INFO, logger="pyprefopt"):
        way = choose(wanted, asked)
    (line,) = [
        record.getMessage() for record in caplog.records if record.name == "pyprefopt.modeling.attention.backends"
    ]
    (name,) = [name for name, known in backends.WAYS.items() if known is way]
    assert line.startswith(f"attention: {name}, ")
    return name, line


WINDOW, CAP = Rule(0.125, window=8), Rule(0.125, softcap=5.0)


@pytest.mark.parametrize(
    ("has", "changes", "expected"),
    [
        ({"flash": "flash-attn 2.6"}, {}, "flash"),
        ({"flash": "flash-attn 2.6"}, {"rule": CAP}, "flash"),
        ({}, {}, "varlen"),
        ({}, {"rule": WINDOW}, "varlen"),
        ({}, {"rule": CAP}, "flex"),
        ({"torch_version": "torch 2.10"}, {}, "varlen"),
        ({"torch_version": "torch 2.10"}, {"rule": WINDOW}, "flex"),
        ({"torch_version": None}, {}, "flex"),
        ({}, {"dtype": torch.float32}, "flex"),
        ({}, {"dtype": torch.float64}, "loop"),
        ({}, {"head_size": 20}, "flex"),
        ({}, {"head_size": 12}, "loop"),
        ({}, {"head_size": 512}, "loop"),
        ({"capability": (7, 5)}, {}, "loop"),
        ({"flash": "flash-attn 2.6"}, {"device": torch.device("cpu")}, "loop"),
        ({"flash": "flash-attn 2.6"}, {"device": torch.device("mps")}, "loop"),
    ],
)
def test_the_rule(has, changes, expected, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    machine(monkeypatch, **has)
    name, line = chosen("auto", demand(**changes), caplog)
    assert name == expected
    assert ", because " in line


def test_the_choice_is_said_once_and_with_what_was_passed_over(monkeypatch, caplog) -> None:
    machine(monkeypatch)
    wanted = "attention: flex, because one compiled kernel serves what the layer asks for"
    assert chosen("auto", demand(rule=CAP), caplog)[1] == wanted
    choose("auto", demand(rule=CAP))
    assert len(caplog.records) == 1
    choose.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="pyprefopt"):
        choose("auto", demand(rule=CAP))
    assert "flash is missing" in caplog.text
    assert "it has no soft caps" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "changes", "reason"),
    [
        ("flash", {}, "flash is missing"),
        ("varlen", {"rule": CAP}, "it has no soft caps"),
        ("varlen", {"dtype": torch.float32}, "it computes in bfloat16, and the model is in float32"),
        ("varlen", {"head_size": 20}, "its heads have a multiple of 8 and at most 256 numbers, here 20"),
        ("varlen", {"device": torch.device("cpu")}, "it needs a CUDA device, and this is cpu"),
        ("flex", {"device": torch.device("cpu")}, "it needs a CUDA device, and this is cpu"),
        ("flash", {"device": torch.device("cpu")}, "it needs a CUDA device, and this is cpu"),
        ("flex", {"dtype": torch.float64}, "it computes in bfloat16 and float32, and the model is in float64"),
        ("flex", {"head_size": 8}, "its heads have 16 to 256 numbers, here 8"),
    ],
)
def test_a_forced_way_that_cannot_serve_is_refused(wanted, changes, reason, monkeypatch) -> None:
    machine(monkeypatch)
    with pytest.raises(ConfigError) as caught:
        choose(wanted, demand(**changes))
    assert f"got '{wanted}': {reason}; set attention auto, or loop, which serves everything" in str(caught.value)


def test_an_old_gpu_is_refused(monkeypatch) -> None:
    machine(monkeypatch, capability=(7, 5))
    with pytest.raises(ConfigError, match=r"it needs compute capability 8.0, and this GPU has 7\.5"):
        choose("varlen", demand())


def test_a_forced_way_is_taken(monkeypatch, caplog) -> None:
    machine(monkeypatch, flash="flash-attn 2.6")
    assert chosen("flex", demand(), caplog) == ("flex", "attention: flex, as asked")


def test_the_loop_can_be_forced_everywhere(monkeypatch, caplog) -> None:
    machine(monkeypatch, flash="flash-attn 2.6")
    assert chosen("loop", demand(rule=Rule(0.1, 3, 2.0)), caplog) == ("loop", "attention: loop, as asked")


def test_a_way_that_fails_its_trial_is_passed_over_with_its_reason(monkeypatch, caplog) -> None:
    machine(monkeypatch, trial=lambda way, asked: "no kernel image" if way is backends.WAYS["varlen"] else None)
    assert chosen("auto", demand(), caplog)[0] == "flex"
    choose.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="pyprefopt"):
        choose("auto", demand())
    assert "no kernel image" in caplog.text
    with pytest.raises(ConfigError, match="got 'varlen': no kernel image; set attention auto"):
        choose("varlen", demand())


SERVED = [
    pytest.param(kernel, rule, id=f"{name}, {what}")
    for name, kernel in TWINS.items()
    for what, rule in {"plain": PLAIN, "window": WINDOW, "cap": CAP}.items()
    if kernel.missing(rule.window is not None, rule.softcap is not None) is None
]


@pytest.mark.parametrize(("kernel", "rule"), SERVED)
def test_the_trial_passes_what_is_right(kernel: varlen.Kernel, rule: Rule) -> None:
    way = Way(partial(varlen.attend, kernel), backends._nothing, "")
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert backends.trial(way, demand(device=torch.device("cpu"), dtype=dtype, head_size=16, rule=rule)) is None


def shifted(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule) -> Tensor:
    """A kernel that aligns the causal rule at the documents' beginnings."""
    parts = []
    for run in layout.runs:
        keys = [x[:, :, [*range(run.parent_start, run.parent_stop), *range(run.start, run.stop)]] for x in (key, value)]
        keys = [x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in keys]
        part = query[:, :, run.start : run.stop]
        parts.append(nn.functional.scaled_dot_product_attention(part, *keys, is_causal=True, scale=rule.scaling))
    return torch.cat(parts, 2).transpose(1, 2)


def without_key_gradient(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule) -> Tensor:
    return loop.attend(query, key.detach() + 0 * key, value, layout, rule)


def nan(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule) -> Tensor:
    return loop.attend(query, key, value, layout, rule) * float("nan")


def broken(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: Rule) -> Tensor:
    raise RuntimeError("CUDA error: no kernel image is available\nand more")


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (shifted, "in its trial (shared layout) it differs from the loop by"),
        (without_key_gradient, "in its trial (shared layout) it differs from the loop by"),
        (nan, "differs from the loop by nan"),
        (broken, "its trial failed with RuntimeError: CUDA error: no kernel image is available"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_trial_finds_what_is_wrong(attend, reason: str, dtype: torch.dtype) -> None:
    told = backends.trial(
        Way(attend, backends._nothing, ""), demand(device=torch.device("cpu"), dtype=dtype, head_size=16)
    )
    assert told is not None
    assert reason in told
    assert "\n" not in told


def test_unknown_ways_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"attention must be one of auto, flash, varlen, flex, loop, unpacked, got 'flax'.*flex"
    ):
        load_model(write_config(tmp_path, ARCHITECTURES["llama"]), attention="flax")


def test_the_setting_reaches_the_layers(tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path, ARCHITECTURES["llama"]), attention="varlen")
    with pytest.raises(ConfigError, match=r"got 'varlen': it needs a CUDA device, and this is cpu"):
        LogpsModel(model)(pack_groups(make_groups()).to())
    assert WAY_SETTING not in model.source_config.to_dict()  # what is saved says nothing of this machine
    module = nn.Identity()
    module.config = SimpleNamespace(**{WAY_SETTING: "flex"})
    with pytest.raises(ConfigError, match="got 'flex': it needs a CUDA device, and this is cpu"):
        packed_attention(module, *states(5, 2, 1, torch.float32), None)


def force(monkeypatch: pytest.MonkeyPatch, attend: Callable[..., Tensor]) -> None:
    """Let `auto` take this, wherever it runs, after its trial."""
    monkeypatch.setitem(backends.WAYS, "flash", Way(attend, backends._nothing, "the test says so"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_on_fused_kernels_equal_the_loop(name: str, layout: str, monkeypatch, caplog) -> None:
    """The whole way through a model, float64: log-probs, and gradients under activation checkpointing."""
    batch = pack_groups(make_groups(), layout).to()
    plain = packed_model(name, dtype="float64")
    expected = plain(batch)
    theirs = weighted_gradients(plain, expected)
    choose.cache_clear()
    force(monkeypatch, partial(varlen.attend, TWINS["flash-attn 2.6"]))
    model = packed_model(name, dtype="float64", gradient_checkpointing=True)
    choose.cache_clear()  # the trial happens inside the first checkpoint, as on a GPU
    with caplog.at_level(logging.INFO, logger="pyprefopt"):
        logps = model(batch)
    assert any("attention: flash, because the test says so" in record.getMessage() for record in caplog.records)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-11)
    ours = weighted_gradients(model, logps)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert (ours[key] - value).norm() <= 1e-10 * value.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_models_on_flex_attention_equal_the_loop(name: str, layout: str, monkeypatch) -> None:
    """Forward only: flex attention has no backward pass on the CPU."""
    groups = [group for seed in range(3) for group in make_groups(seed)]  # more than one block
    batch = pack_groups(groups, layout).to()
    model = packed_model(name)
    with torch.no_grad():
        expected = model(batch)
        choose.cache_clear()
        monkeypatch.setattr(backends, "trial", lambda way, asked: None)
        force(monkeypatch, flex.attend)
        logps = model(batch)
    assert len(batch.input_ids) > flex.BLOCK
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)


def test_a_trial_leaves_the_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    backends.trial(backends.WAYS["loop"], demand(device=torch.device("cpu"), head_size=16))
    assert torch.equal(before, torch.get_rng_state())


def test_the_shaken_models_feel_the_kernel() -> None:
    """What the tests above compare is sharp: another scale in the kernel shows in the log-probs."""
    batch = pack_groups(make_groups()).to()
    model = packed_model("llama")
    shake(model, seed=2)
    with torch.no_grad():
        right = model(batch)
        choose.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backends, "trial", lambda way, asked: None)
            force(patch, lambda *args: loop.attend(*args[:4], Rule(2 * args[4].scaling)))
            wrong = model(batch)
    assert (right - wrong).abs().max() > 1e-2
