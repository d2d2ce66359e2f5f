"""Nothing that is read can run: no code of ours unpickles, and each place where people put a file refuses a pickle."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from pyprefopt import data
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import PyprefoptError
from pyprefopt.modeling import load_model
from pyprefopt.stages.scoring.parts import read_part
from pyprefopt.types import PackedBatch
from tests.evil import write_evil
from tests.house.test_imports import PACKAGE, ROOT, imports_of
from tests.modeling.models import ARCHITECTURES, write_config

BANNED = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pickletools"}
CALLS = {  # of which module's function -> the keyword that it must be given, with this value; None: it is not called
    "torch.load": ("weights_only", True), "torch.save": None, "np.load": ("allow_pickle", False), "np.save": None,
    "eval": None, "exec": None, "compile": None, "__import__": None, "yaml.load": ("Loader", "_Loader"),
    "yaml.unsafe_load": None, "yaml.full_load": None,
}  # fmt: skip
OBJECTS = ("gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list", "recv_object_list")


def faults(code: str) -> list[str]:
    """What of Python code could run a file that it reads."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).replace("numpy.", "np.")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in CALLS:
            needed = CALLS[name]
            value = None if needed is None else given.get(needed[0])
            shown = getattr(value, "value", getattr(value, "id", None))
            if needed is None or shown != needed[1]:
                found.append(name)
        if name.endswith(OBJECTS) or (name.endswith("from_pretrained") and "use_safetensors" not in given):
            found.append(name)
    return found


ALLOWED = {  # they read JSON, the last of them from a folder that was just written here
    "AutoConfig.from_pretrained", "GenerationConfig.from_pretrained", "AutoTokenizer.from_pretrained",
}  # fmt: skip


@pytest.mark.parametrize("file", [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")], ids=str)
def test_no_code_unpickles(file):
    assert not {name.split(".")[0] for name in imports_of(file)} & BANNED
    assert set(faults(file.read_text(encoding="utf-8"))) <= ALLOWED


@pytest.mark.parametrize(
    "code",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "numpy.load(p)",
     "eval(text)", "yaml.load(t, Loader=yaml.Loader)", "dist.broadcast_object_list(x)", "dist.all_gather_object(x, y)",
     "AutoModel.from_pretrained(p)", "torch.save(x, p)"],
)  # fmt: skip
def test_the_rule_bites(code):
    assert faults(code)


def test_the_rule_lets_the_rest_pass():
    assert not faults("torch.load(p, weights_only=True); model.eval(); re.compile(x); yaml.load(t, Loader=_Loader)")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    load_model(write_config(folder / "config", ARCHITECTURES["llama"])).save_pretrained(folder)
    shutil.rmtree(folder / "config")
    return folder


PLACES = ["pytorch_model.bin", "model.bin", "model.pt", "training_args.bin", "optimizer.pt", "adapter_model.bin",
          "rng_state.pth", "tokenizer.pkl"]  # fmt: skip


@pytest.mark.parametrize("head", ["language", "reward"])
@pytest.mark.parametrize("name", PLACES)
def test_what_lies_beside_the_weights_is_not_opened(model_folder, tmp_path, name, head):
    folder, mark = shutil.copytree(model_folder, tmp_path / "model"), tmp_path / "mark"
    write_evil(folder / name, mark)
    load_model(folder, head=head)
    (folder / "model.safetensors").unlink()
    with pytest.raises(PyprefoptError, match=r"model must have its weights as \*\.safetensors \(nothing else is"):
        load_model(folder, head=head)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["torch", "zip", "bare"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_pickle_under_a_models_names_is_named(model_folder, tmp_path, name, kind):
    folder, mark = shutil.copytree(model_folder, tmp_path / "model"), tmp_path / "mark"
    if name.endswith("index.json"):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_evil(folder / name, mark, kind)
    with pytest.raises(PyprefoptError, match=name):
        load_model(folder)
    assert not mark.exists()


def test_an_adapter_is_refused_before_its_weights_are_opened(model_folder, tmp_path):
    folder, mark = tmp_path / "adapter", tmp_path / "mark"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    write_evil(folder / "adapter_model.bin", mark)
    with pytest.raises(PyprefoptError, match="is a LoRA adapter; merge it into its model first"):
        load_model(folder)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["torch", "zip", "bare"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "arrow", "pkl", "pt", "npy", "jsonl.gz"])
def test_a_pickle_as_data_is_named(tmp_path, suffix, kind):
    path, mark = tmp_path / f"pairs.{suffix}", tmp_path / "mark"
    write_evil(path, mark, kind)
    tokenizer = data.load_tokenizer("embedded:toy")
    with pytest.raises(PyprefoptError, match=rf"pairs\.{suffix}"):
        data.prepare(str(path), tokenizer, tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_pickle_as_tokenizer_is_named(tmp_path, name):
    data.load_tokenizer("embedded:toy").save(tmp_path / "tokenizer")
    write_evil(tmp_path / "tokenizer" / name, tmp_path / "mark", "bare")
    with pytest.raises(PyprefoptError, match=name):
        data.load_tokenizer(tmp_path / "tokenizer")
    assert not (tmp_path / "mark").exists()


def test_a_pickle_as_shard_part_or_batch_is_not_run(tmp_path, embedded_store):
    mark = tmp_path / "mark"
    store = shutil.copytree(embedded_store, tmp_path / "store")
    write_evil(store / "segments-00000.arrow", mark, "bare")
    with pytest.raises(PyprefoptError, match=r"segments-00000\.arrow"):
        SegmentStore.open(store, verify=True)
    write_evil(tmp_path / "part.safetensors", mark, "bare")
    assert read_part(tmp_path / "part.safetensors") is None
    with pytest.raises(Exception, match="header"):
        PackedBatch.load(tmp_path / "part.safetensors")
    assert not mark.exists()


@pytest.fixture(scope="module")
def embedded_store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"prompt": "cat says", "chosen": " meow", "rejected": " woof"}\n')
    data.prepare(str(pairs), data.load_tokenizer("embedded:toy"), folder / "out")
    return folder / "out"
