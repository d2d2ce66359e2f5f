from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import load_model, save_policy, toy_config
from pyprefopt.modeling.checkpoints.source import resolve_source
from tests.modeling.models import write_config


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_policy(load_model(write_config(tmp_path / "config", toy_config(300))), tmp_path / "saved")


HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:-100], r"model\.safetensors' is cut short: [\d,]+ of [\d,]+ bytes; copy or download"),
        (lambda whole: whole[:200], r"\(200 bytes\) does not begin as a safetensors file does \(.*; copy or download"),
        (lambda whole: b"", r"\(0 bytes\) does not begin as a safetensors file does"),
        (lambda whole: b"\xff" * len(whole), r"does not begin as a safetensors file does"),
        (lambda whole: whole[:8] + b"[" + whole[9:], r"does not begin as a safetensors file does"),
        (lambda whole: whole + b"more", r"is damaged \("),
        (lambda whole: len(HEADER).to_bytes(8, "little") + HEADER + bytes(8), r"is damaged \("),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid", r"pointer of Git LFS.*run git lfs pull"),
    ],
    ids=["cut", "header cut", "empty", "garbage", "no JSON", "longer", "a gap", "pointer"],
)
def test_weights_that_are_not_whole(content: Callable[[bytes], bytes], message: str, saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    for look in (load_model, resolve_source):
        with pytest.raises(ConfigError, match=r"model must have whole weights, but '.*" + message):
            look(saved)


def test_parts_of_weights(saved: Path) -> None:
    load_model(saved).save_pretrained(saved, max_shard_size="200KB")
    (saved / "model.safetensors").unlink()
    index = saved / "model.safetensors.index.json"
    parts = sorted(saved.glob("model-*.safetensors"))
    assert len(parts) > 2
    (saved / "consolidated.safetensors").write_bytes(b"what nobody opens")
    load_model(saved)
    whole = parts[1].read_bytes()
    parts[1].write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=rf"{parts[1].name}' is cut short"):
        load_model(saved)
    parts[1].unlink()
    with pytest.raises(
        ConfigError, match=rf"{parts[1].name}, which model\.safetensors\.index\.json names, is not in .*; copy"
    ):
        load_model(saved)
    index.write_text(index.read_text()[:-9])
    with pytest.raises(ConfigError, match=r"index\.json' must say which file has which weight .*; copy or download"):
        load_model(saved)
    index.unlink()
    with pytest.raises(ConfigError, match=r"as model\.safetensors, or as parts with .*index\.json, got .*; copy"):
        load_model(saved)
