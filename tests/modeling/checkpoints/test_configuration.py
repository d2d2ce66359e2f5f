"""What is written in config.json, in headers of weights and in an index: a right model, or one sentence, in no time."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyprefopt.errors import ConfigError, PyprefoptError
from pyprefopt.modeling import LogpsModel, load_model, model_hash, save_policy
from pyprefopt.modeling.checkpoints.configuration import check_memory
from pyprefopt.modeling.checkpoints.load import sketch_model
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.storage.hub import resolve
from tests.modeling.models import make_groups, write_config
from tests.reference.packing import pack_groups

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu", "initializer_range": 0.02,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "attention_dropout": 0.0,
    "rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32", "layer_types": ["full_attention"],
}  # fmt: skip
# Changes of a config.json -> the setting and the value that the sentence has.
NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no heads": ({"num_attention_heads": 0}, r"num_attention_heads must be > 0, got 0"),
    "no key heads": ({"num_key_value_heads": 0}, r"num_key_value_heads must be > 0, got 0"),
    "key heads that do not divide": ({"num_key_value_heads": 3}, r"num_key_value_heads must divide .*\(4\), got 3"),
    "heads that do not divide": ({"hidden_size": 33}, r"hidden_size must be .*, got 33"),
    "heads of nothing": ({"head_dim": 0}, r"head_dim must be > 0, got 0"),
    "heads of odd size": ({"head_dim": 7}, r"head_dim must be .*, got 7"),
    "no layers": ({"num_hidden_layers": 0}, r"num_hidden_layers must be > 0, got 0"),
    "fewer than no layers": ({"num_hidden_layers": -1}, r"num_hidden_layers must be > 0, got -1"),
    "ten million layers": ({"num_hidden_layers": 10**7}, r"num_hidden_layers must be at most 4,096, got 10000000"),
    "layers beyond memory": ({"num_hidden_layers": 10**12}, r"num_hidden_layers must be at most 4,096, got 10{12}"),
    "a width of nothing": ({"hidden_size": 0}, r"hidden_size must be > 0, got 0"),
    "a negative width": ({"hidden_size": -32}, r"hidden_size must be > 0, got -32"),
    "a width of a trillion": ({"hidden_size": 10**12, "head_dim": 8}, r"hidden_size must be at most .*, got 10{12}"),
    "a block of a trillion": ({"intermediate_size": 10**12}, r"intermediate_size must be at most .*, got 10{12}"),
    "no vocabulary": ({"vocab_size": 0}, r"vocab_size must be > 0, got 0"),
    "a vocabulary of a trillion": ({"vocab_size": 10**12}, r"vocab_size must be at most .*, got 10{12}"),
    "a context of a trillion": ({"max_position_embeddings": 10**12}, r"max_position_embeddings must be at most .*0{9}"),
    "a negative context": ({"max_position_embeddings": -1}, r"max_position_embeddings must be > 0, got -1"),
    "a billion labels": ({"num_labels": 10**9}, r"num_labels must be at most 65,536, got 10{9}"),
    "a billion experts": (
        {"model_type": "mixtral", "num_local_experts": 10**9}, r"num_local_experts must be at most 65,536, got 10{9}"
    ),
    "many experts in many layers": (
        {"model_type": "mixtral", "num_local_experts": 60_000, "num_hidden_layers": 4_000, "layer_types": None},
        r"layers times experts must be at most 524,288, got 240000000",
    ),
    "a number as text": ({"hidden_size": "32"}, r"hidden_size must be .*, got '32'"),
    "a fraction of a head": ({"num_attention_heads": 4.5}, r"num_attention_heads must be .*, got 4\.5"),
    "a truth as a number": ({"num_hidden_layers": True}, r"num_hidden_layers must be a whole number, got True"),
    "nothing as a number": ({"hidden_size": None}, r"hidden_size must be .*, got None"),
    "no number": ({"rope_theta": float("nan")}, r"rope_theta must be a finite number, got nan"),
    "no number far inside": ({"a": {"b": [1.0, float("nan")]}}, r"a\.b\[1\] must be a finite number, got nan"),
    "infinity": ({"rms_norm_eps": float("inf")}, r"rms_norm_eps must be a finite number, got inf"),
    "a rotation of nothing": ({"rope_theta": 0}, r"rope_theta must be > 0, got 0"),
    "a negative epsilon": ({"rms_norm_eps": -1.0}, r"rms_norm_eps must be >= 0, got -1\.0"),
    "a negative deviation": ({"initializer_range": -1.0}, r"initializer_range must be >= 0, got -1\.0"),
    "an activation": ({"hidden_act": "evil"}, r"hidden_act must be .*, got 'evil'"),
    "a rotation": ({"rope_scaling": {"rope_type": "evil"}}, r"rope_scaling\.rope_type must be .*, got 'evil'"),
    "a rotation as text": ({"rope_scaling": "x"}, r"rope_scaling must be .*, got 'x'"),
    "a rotation as a list": ({"rope_scaling": [1]}, r"rope_scaling must be .*, got \[1\]"),
    "a rotation as a number": ({"rope_scaling": 1}, r"rope_scaling must be .*, got 1"),
    "a rotation without its factor": ({"rope_scaling": {"rope_type": "dynamic"}}, r"must .*'?factor'?"),
    "a kind of layer": ({"layer_types": ["evil"]}, r"layer_types must be .*, got \['evil'\]"),
    "too few kinds of layers": ({"layer_types": []}, r"layer_types must be .*, got \[\]|num_hidden_layers must be .*"),
    "a precision": ({"torch_dtype": "evil"}, r"torch_dtype must be .*, got 'evil'"),
    "a padding token": ({"pad_token_id": 999}, r"pad_token_id must be .*, got 999|Padding_idx must be within"),
    "an end": ({"eos_token_id": "a"}, r"eos_token_id must be .*, got 'a'"),
    "labels": ({"id2label": 5}, r"config\.json' must describe a model that transformers builds|id2label must be"),
    "a text part": ({"text_config": 5}, r"text_config must be an object of settings, got 5"),
    "a packing of unknown kind": ({"quantization_config": "x"}, r"is quantized \('x'\)"),
    "a packing of a part": ({"text_config": {"quantization_config": {"quant_method": "y"}}}, r"is quantized \(y\)"),
    "a packing by another name": ({"compression_config": {"quant_method": "z"}}, r"is quantized \(z\)"),
    "no type": ({"model_type": None}, r"model_type must be one that transformers knows, got None"),
    "a list as type": ({"model_type": ["llama"]}, r"model_type must be one that transformers knows, got \['llama'\]"),
    "a number as type": ({"model_type": 5}, r"model_type must be one that transformers knows, got 5"),
    "an unknown type": ({"model_type": "lama"}, r"got 'lama'; did you mean 'llama'"),
    "a base of rotations in words": ({"rope_theta": "x"}, r"rope_theta must be > 0, got 'x'"),
    "padding beyond the vocabulary": ({"pad_token_id": 10**9}, r"pad_token_id must be .*, got 1000000000"),
    "a negative window": ({"model_type": "mistral", "sliding_window": -4}, r"sliding_window must be >= 0, got -4"),
}  # fmt: skip
# The text of a config.json -> the sentence.
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"must be JSON, got an error"),
    "half": ('{"model_type": "lla', r"must be JSON, got an error"),
    "a list": ("[1, 2]", r"must be JSON, as an object of settings, got \[1, 2\]"),
    "a text": ('"llama"', r"must be JSON, as an object of settings, got 'llama'"),
    "nothing": ("null", r"must be JSON, as an object of settings, got None"),
    "no UTF-8": (b"\xff\xfe{\x00", r"must be JSON, in UTF-8, got an error"),
    "nested too deep to read": ("[" * 100_000, r"must be JSON, in at most 64 levels"),
    "nested deep": ('{"a": ' * 100 + "1" + "}" * 100, r"must be JSON, in at most 64 levels|model_type must be"),
    "nested deep in a right one": (
        json.dumps(LLAMA)[:-1] + ', "a": ' + '{"a": ' * 100 + "1" + "}" * 101, r"must be JSON, in at most 64 levels"
    ),
    "a long number": ('{"model_type": "llama", "hidden_size": 1' + "0" * 10_000 + "}", r"must be JSON, got an error"),
    "a number beyond floats": ('{"model_type": "llama", "hidden_size": 1e999}', r"hidden_size must be a finite number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that is right."""
    directory = tmp_path_factory.mktemp("base")
    config = write_config(directory / "config", LLAMA)
    return save_policy(load_model(config), directory / "model")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def refused(source: Path, message: str) -> None:
    """By everything that looks at a model, in a moment, in one sentence with the file."""
    for look in (load_model, sketch_model):
        start = time.process_time()
        with pytest.raises(ConfigError, match=message) as caught:
            look(source)
        assert time.process_time() - start < 5
        assert "\n" not in str(caught.value)
        assert ".json" in str(caught.value)


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_a_configuration(name: str, model: Path) -> None:
    changes, message = NONSENSE[name]
    (model / "config.json").write_text(json.dumps(LLAMA | changes))
    for source in (model, model / "config.json"):
        refused(source, message)


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_no_configuration(name: str, model: Path) -> None:
    text, message = TEXTS[name]
    (model / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for source in (model, model / "config.json"):
        refused(source, message)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": None},
        {"architectures": ["Nope"]},
        {"time_step_limit": [0.0, float("inf")]},
        {"model_max_length": 10**30, "num_parameters": 7 * 10**9},
        {"attention_dropout": 2.0},
    ],
)
def test_what_only_looks_odd_is_taken(changes: dict[str, Any], model: Path) -> None:
    expected = LogpsModel(load_model(model))(pack_groups(make_groups()).to())
    (model / "config.json").write_text(json.dumps(LLAMA | changes))
    assert torch.equal(LogpsModel(load_model(model))(pack_groups(make_groups()).to()), expected)
    sketch_model(model)


def test_a_configuration_of_more_weights_than_memory(tmp_path: Path) -> None:
    huge = {**LLAMA, "hidden_size": 2**20, "intermediate_size": 2**22}
    config = write_config(tmp_path, huge)
    model = sketch_model(config)  # which takes none
    for look in (lambda: load_model(config), lambda: check_memory(model, config)):
        with pytest.raises(
            ConfigError, match=r"must fit in memory, but .*config.json' describes [\d,]+ weights, .* GiB"
        ):
            look()


def test_a_configuration_of_more_weights_than_the_files_hold(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 2**30}))
    refused(model, r"config\.json' describes [\d,]+ numbers and the safetensors files beside it hold [\d,]+")


@pytest.mark.parametrize("changes", [{"vocab_size": 299}, {"intermediate_size": 96}, {"num_key_value_heads": 4}])
def test_weights_of_other_shapes(changes: dict[str, Any], model: Path) -> None:
    (model / "config.json").write_text(json.dumps(LLAMA | changes))
    with pytest.raises(
        ConfigError, match=r"has \d weights of other shapes than its config\.json says \(first: \w.* is \["
    ):
        load_model(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_weights_that_are_whole_numbers(dtype: torch.dtype, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].to(dtype)}, model / "model.safetensors", metadata={"format": "pt"})
    for look in (load_model, sketch_model):
        with pytest.raises(ConfigError, match=rf"model\.safetensors' stores {name} as \w+; give"):
            look(model)


def header(text: str | bytes, numbers: int = 0) -> bytes:
    text = text if isinstance(text, bytes) else text.encode()
    return len(text).to_bytes(8, "little") + text + bytes(numbers)


HEADERS: dict[str, bytes] = {
    "nested": header('{"a":' * 100_000 + "1" + "}" * 100_000),
    "nested lists": header("[" * 100_000),
    "longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "as long as numbers go": b"\xff" * 8 + b"{}",
    "a text": header('"a"'),
    "overlapping": header(
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        12,
    ),
    "backwards": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', 4),
    "beyond the file": header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', 4),
    "of another shape": header('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}', 4),
    "shape beyond numbers": header('{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}', 4),
    "a negative shape": header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', 4),
    "of no type": header('{"a":{"dtype":"EVIL","shape":[1],"data_offsets":[0,4]}}', 4),
    "offsets of texts": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":["0","4"]}}', 4),
    "no UTF-8": header(b'{"\xff":{}}'),
    "a number of 5000 digits": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + "9" * 5000 + "]}}", 4),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(name: str, model: Path) -> None:
    (model / "model.safetensors").write_bytes(HEADERS[name])
    for look in (load_model, sketch_model, resolve_source):
        with pytest.raises(ConfigError, match=r"model must have whole weights, but '.*model\.safetensors' ") as caught:
            look(model)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_weights_without_a_tensor(model: Path) -> None:
    (model / "model.safetensors").write_bytes(header("{}"))
    with pytest.raises(ConfigError, match=r"not all weights of LlamaForCausalLM: 12 are missing"):
        load_model(model)


INDEXES: dict[str, tuple[str, str]] = {
    "nested": ("[" * 100_000, r"must say which file has which weight"),
    "no map": ("{}", r"must say which file has which weight \(weight_map\), got None; copy"),
    "an empty map": ('{"weight_map": {}}', r"must say which file has which weight \(weight_map\), got \{\}; copy"),
    "a list": ('{"weight_map": ["a"]}', r"must say which file has which weight"),
    "numbers": ('{"weight_map": {"a": 5}}', r"must say which file has which weight"),
    "lists": ('{"weight_map": {"a": []}}', r"must say which file has which weight"),
    "above": ('{"weight_map": {"a": "../../x"}}', r"must name files beside it, got '../../x' for a"),
    "elsewhere": ('{"weight_map": {"a": "/etc/passwd"}}', r"must name files beside it, got '/etc/passwd' for a"),
    "below": ('{"weight_map": {"a": "b/c.safetensors"}}', r"must name files beside it"),
    "the folder": ('{"weight_map": {"a": "."}}', r"must name files beside it, got '\.' for a"),
    "nothing": ('{"weight_map": {"a": ""}}', r"must name files beside it|, which .* names, is not in"),
    "a zero": ('{"weight_map": {"a": "x\\u0000"}}', r"must name files beside it"),
    "missing": ('{"weight_map": {"a": "x.safetensors"}}', r"x\.safetensors, which model.*index.json names, is not in"),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_that_lie(name: str, model: Path) -> None:
    text, message = INDEXES[name]
    (model / "model.safetensors").rename(model / "part.safetensors")
    (model / "model.safetensors.index.json").write_text(text)
    for look in (load_model, sketch_model, resolve_source):
        with pytest.raises(ConfigError, match=message) as caught:
            look(model)
        assert "\n" not in str(caught.value)


def as_nobody(look: Callable[[], object]) -> str:
    """The ConfigError of `look` for a user who may read nothing; permissions do not bind the one who may all."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = "nothing was refused"
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            look()
        except ConfigError as error:
            told = str(error)
        except BaseException as error:  # shown by the parent
            told = f"crashed with {type(error).__name__}: {error}"
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", ".", "above"])
def test_what_may_not_be_read(name: str, model: Path) -> None:
    for folder in (model, *model.parents):  # pytest's own are closed to others
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    closed = model.parent / "closed" if name == "above" else model / name
    if name == "above":
        closed.mkdir()
        model = model.rename(closed / "model")
    mode = closed.stat().st_mode
    closed.chmod(0)
    try:
        for look in (load_model, sketch_model, resolve_source, model_hash):
            if name == "config.json" and look is resolve_source:
                continue  # it looks at the weights alone
            told = as_nobody(lambda look=look: look(model))  # type: ignore[misc]
            assert told.startswith("model must be files that can be read, but '"), told
            assert "Permission denied); change its permissions, or give another path" in told
    finally:
        closed.chmod(mode)


def test_a_path_that_is_not_utf_8(model: Path) -> None:
    strange = model.rename(os.fsdecode(os.fsencode(model.parent) + b"/m\xff"))
    for source in (strange, strange / "config.json"):
        for look in (load_model, sketch_model, resolve_source):
            with pytest.raises(ConfigError, match=r"must be written in UTF-8, got '.*m\\udcff"):
                look(source)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path in ("~nobody-of-that-name/model", "x" * 300, str(tmp_path / ("x" * 300) / "model"), "a\0b"):
        for look in (load_model, sketch_model, resolve_source, resolve):
            with pytest.raises(ConfigError) as caught:
                look(path)
            assert "\n" not in str(caught.value)


# Values that a damaged or hostile file may have anywhere.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 7, 2**31, 2**63, 10**12, 10**30, -(10**12), 0.5, -0.5, 1e-320, 1e300, float("nan"),
    float("inf"), "", "evil", "32", "full_attention", "\ud800", [], [1], ["evil"], [[]], {}, {"a": 1},
    {"rope_type": "yarn"},
]  # fmt: skip


def mutated_settings(chance: random.Random) -> dict[str, Any]:
    settings: dict[str, Any] = copy.deepcopy(LLAMA)
    settings["rope_scaling"] = chance.choice(
        [None, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}]
    )  # fmt: skip
    for _ in range(chance.randint(1, 2)):
        place = settings
        if chance.random() < 0.2 and isinstance(settings.get("rope_scaling"), dict):
            place = settings["rope_scaling"]
        name = chance.choice(
            [*place, *place, "head_dim", "text_config", "quantization_config", "mlp_bias", "sliding_window"]
        )
        action = chance.random()
        if action < 0.15:
            place.pop(name, None)
        elif action < 0.3 and isinstance(place.get(name), int | float):
            place[name] = place[name] * chance.choice([-1, 2, 1000, 10**9, 0.37])
        else:
            place[name] = chance.choice(VALUES)
    return settings


def mutated_bytes(whole: bytes, chance: random.Random, reach: int) -> bytes:
    """Some bytes of the beginning changed, cut out or put in."""
    content = bytearray(whole)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(min(reach, len(content)) or 1)
        action = chance.random()
        if action < 0.5 and content:
            content[at] = chance.choice(b'{}[]",:0129-\\\x00\xff' + bytes([content[at] ^ (1 << chance.randrange(8))]))
        elif action < 0.7:
            del content[at : at + chance.randint(1, 40)]
        elif action < 0.9:
            content[at:at] = chance.choice([b"[" * 300, b"9" * 30, b'{"a":', b"\x00", b"null", b'"x":1,'])
        else:
            del content[at:]
    return bytes(content)


def outcome(model: Path) -> str:
    """`right` or `refused`; anything else fails. A log-prob must be a number."""
    start = time.process_time()
    try:
        engine = LogpsModel(load_model(model))
        with torch.no_grad():
            logps = engine(pack_groups(make_groups()).to())
        assert torch.isfinite(logps).all()
        told = "right"
    except PyprefoptError as error:
        told = str(error)
    assert time.process_time() - start < 20
    assert "\n" not in told
    assert len(told) < 1500
    return "right" if told == "right" else "refused"


def mutate(base: Path, directory: Path, seed: int) -> str:
    """Change one of the files of a right model in a way that the seed decides, and look."""
    chance = random.Random(seed)
    model = Path(shutil.copytree(base, directory / str(seed)))
    kind = chance.choice(["settings", "settings", "config.json", "model.safetensors"])
    if kind == "settings":
        (model / "config.json").write_text(json.dumps(mutated_settings(chance)))
    else:
        whole = (model / kind).read_bytes()
        reach = 8 + int.from_bytes(whole[:8], "little") if kind == "model.safetensors" else len(whole)
        (model / kind).write_bytes(mutated_bytes(whole, chance, reach))
    try:
        return outcome(model)
    finally:
        shutil.rmtree(model)


@pytest.mark.parametrize("part", range(4))
def test_mutated_checkpoints(part: int, base: Path, tmp_path: Path) -> None:
    found = [mutate(base, tmp_path, seed) for seed in range(40 * part, 40 * part + 40)]
    assert set(found) == {"right", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_many_mutated_checkpoints(part: int, base: Path, tmp_path: Path) -> None:
    found = [mutate(base, tmp_path, seed) for seed in range(10_000 + 200 * part, 10_000 + 200 * part + 200)]
    assert set(found) == {"right", "refused"}


@pytest.mark.parametrize("name", ["an activation", "ten million layers", "a kind of layer", "no heads"])
def test_a_run_refuses_it_before_it_reads_data(name: str, tmp_path: Path) -> None:
    from pyprefopt import configure, train

    changes, message = NONSENSE[name]
    config = write_config(tmp_path, {**LLAMA, "vocab_size": 420, **changes})
    settings = configure(method="dpo", data="embedded:toy", model=str(config), output_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=message):
        train(settings)
    assert not list(tmp_path.glob("run/stages/*"))
