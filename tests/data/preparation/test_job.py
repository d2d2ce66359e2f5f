"""Preparation: the same bytes every time, killed or not; nothing stale is used; the counts add up."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pyprefopt import data
from pyprefopt.data.files import parts
from pyprefopt.data.preparation import workspace
from pyprefopt.data.preparation.job import Progress, identity
from pyprefopt.data.preparation.report import inspect
from pyprefopt.data.reading import blocks
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ArtifactError, ConfigError, DataError
from tests.data.prepared import contents, flip_a_bit, row, run, write_pairs, write_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_BYTES", 600)
    monkeypatch.setattr(parts, "BLOCK_ROWS", 8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def pairs(tmp_path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl")


def same_lines(store: SegmentStore, frame: pl.DataFrame) -> bool:
    wanted = SegmentStore.from_frame(frame).table
    return store.table.select(wanted.column_names).combine_chunks().equals(wanted.combine_chunks())


def test_a_folder_holds_what_tokenize_gives(tmp_path, small, tokenizer, pairs):
    store = run(str(pairs), tokenizer, tmp_path / "out")
    loaded = data.load_tokenizer(tokenizer)
    frame = data.tokenize(data.read_preferences(pairs), loaded, max_prompt_tokens=1024, max_tokens=2048)
    assert same_lines(store, frame)
    manifest = store.manifest
    assert len(manifest["shards"]) > 3
    assert manifest["rows_in"] == manifest["rows"] == store.num_rows == 40
    assert manifest["tokens"] == store.lengths.sum()
    assert [shard["first_row"] for shard in manifest["shards"]] == [
        int(store.rows[number]) for number in (store.table["segment"].to_numpy() == 0).cumsum()[_first_lines(store)] - 1
    ]
    by_row = frame.group_by("row").agg(
        pl.col("ids").list.len().first().alias("prompt"), pl.col("ids").list.len().slice(1).max().alias("response")
    )
    assert manifest["longest_prompt"] == by_row["prompt"].max()
    assert manifest["longest_row"] == (by_row["prompt"] + by_row["response"]).max()
    kept = identity(data.load_tokenizer(tmp_path / "out/tokenizer"))
    for name in ("json", "chat_template"):
        assert kept[name] == manifest["tokenizer"][name] == identity(loaded)[name]
    assert kept["special_tokens"].items() >= loaded.special_tokens.items()
    assert sorted(contents(tmp_path / "out")) == sorted(
        [".lock", "manifest.json", *(shard["file"] for shard in manifest["shards"]),
         *(f"tokenizer/{name}" for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"))]
    )  # fmt: skip


def _first_lines(store):
    lines = [0]
    for shard in store.manifest["shards"][:-1]:
        lines.append(lines[-1] + shard["lines"])
    return lines


def test_the_bytes_depend_on_input_and_settings_alone(tmp_path, small, tokenizer, pairs, monkeypatch):
    run(str(pairs), tokenizer, tmp_path / "one")
    monkeypatch.setattr("pyprefopt.data.parallel.THREADS", 1)
    run(str(pairs), tokenizer, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not contents(tmp_path / "one")[".lock"]


def test_a_finished_folder_is_opened_at_once(tmp_path, small, tokenizer, pairs, monkeypatch, caplog):
    caplog.set_level("INFO", logger="pyprefopt")
    before = run(str(pairs), tokenizer, tmp_path / "out")
    monkeypatch.setattr(blocks, "parse_block", lambda *_: pytest.fail("worked again"))
    calls: list[Progress] = []
    again = run(str(pairs), tokenizer, tmp_path / "out", progress=calls.append)
    assert again.fingerprint == before.fingerprint
    assert not calls
    assert "done before, used again" in caplog.text


def test_a_damaged_shard_is_noticed_and_made_again(tmp_path, small, tokenizer, pairs):
    run(str(pairs), tokenizer, tmp_path / "out")
    before = contents(tmp_path / "out")
    flip_a_bit(tmp_path / "out/segments-00000.arrow")
    with pytest.raises(ArtifactError, match=r"segments-00000.*damaged.*overwrite=True"):
        run(str(pairs), tokenizer, tmp_path / "out")
    run(str(pairs), tokenizer, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_a_finished_folder_tells_its_bad_rows_where_they_are_to_be_raised(tmp_path, small, tokenizer):
    pairs = write_pairs(tmp_path / "pairs.jsonl", bad=(3,))
    run(str(pairs), tokenizer, tmp_path / "out", on_error="skip")
    with pytest.raises(DataError, match="empty_response"):
        run(str(pairs), tokenizer, tmp_path / "out", on_error="raise")


def test_frames_and_files_are_the_same_shards(tmp_path, small, tokenizer):
    frame = pl.DataFrame([row(index) for index in range(20)])
    frame.write_parquet(tmp_path / "pairs.parquet")
    one = run(frame, tokenizer, tmp_path / "one")
    run(frame.lazy(), tokenizer, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert same_lines(one, SegmentStore.open(tmp_path / "two").table)


def test_progress_adds_up(tmp_path, small, tokenizer):
    pairs = write_pairs(tmp_path / "pairs.jsonl", bad=(3, 17))
    calls: list[Progress] = []
    store = run(str(pairs), tokenizer, tmp_path / "out", progress=calls.append, on_error="skip")
    last = calls[-1]
    assert (last.rows, last.rejected, last.tokens) == (40, 2, store.manifest["tokens"])
    assert last.shards == len(store.manifest["shards"])
    assert last.bytes_read == last.bytes_total == pairs.stat().st_size
    assert [call.rows for call in calls] == sorted(call.rows for call in calls)


def test_offsets_can_be_left_out(tmp_path, small, tokenizer, pairs):
    whole = run(str(pairs), tokenizer, tmp_path / "whole")
    lean = run(str(pairs), tokenizer, tmp_path / "lean", offsets=False)
    assert set(whole.table.column_names) - set(lean.table.column_names) == {"starts", "ends", "turns"}
    assert lean.table.equals(whole.table.select(lean.table.column_names))


def test_truncation_is_that_of_truncate(tmp_path, small, tokenizer, pairs):
    cut = run(str(pairs), tokenizer, tmp_path / "cut", truncation={"ratio": 0.5})
    frame = data.tokenize(data.read_preferences(pairs), data.load_tokenizer(tokenizer))
    assert same_lines(cut, data.truncate(frame, ratio=0.5))


# -- bad rows


def test_bad_rows_are_reported_together_then_skipped(tmp_path, small, tokenizer):
    pairs = write_pairs(tmp_path / "pairs.jsonl", bad=(3, 17, 39))
    out = tmp_path / "out"
    limit = run(str(pairs), tokenizer, tmp_path / "all", on_error="skip").manifest["longest_prompt"] - 1
    with pytest.raises(DataError) as error:
        run(str(pairs), tokenizer, out, max_prompt_tokens=limit, command="pyprefopt prepare x")
    report = str(error.value)
    assert "of 40 rows cannot be used" in report
    assert f"empty_response: 3\n    {pairs}, row 3, chosen" in report
    assert "prompt_too_long" in report
    assert report.endswith("pyprefopt prepare x --on_error skip")
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        SegmentStore.open(out)
    store = run(str(pairs), tokenizer, out, max_prompt_tokens=limit, on_error="skip")
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in rejected] == sorted(entry["row"] for entry in rejected)
    assert store.num_rows + len(rejected) == 40
    assert store.manifest["rejected"] == {
        reason: sum(entry["reason"] == reason for entry in rejected) for reason in ("empty_response", "prompt_too_long")
    }
    assert not set(store.rows.tolist()) & {entry["row"] for entry in rejected}
    run(str(pairs), tokenizer, tmp_path / "fresh", max_prompt_tokens=limit, on_error="skip")
    assert contents(out) == contents(tmp_path / "fresh")


def test_no_row_left_is_an_error(tmp_path, small, tokenizer):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 3, bad=(0, 1, 2))
    for _ in range(2):
        with pytest.raises(DataError, match=r"no row is left; empty_response: 3; --on_error raise .* shows them"):
            run(str(pairs), tokenizer, tmp_path / "out", on_error="skip")
        assert sorted(contents(tmp_path / "out")) == [".lock"]
        assert not (tmp_path / "out/.work").exists()
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json; make one"):
        inspect(tmp_path / "out")
    with pytest.raises(DataError, match=r"pairs\.jsonl, row 0, chosen"):
        run(str(pairs), tokenizer, tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"was stopped, or found bad rows; give the same .* again"):
        inspect(tmp_path / "out")


# -- nothing stale


CHANGES = {
    "input": {},
    "tokenizer": {},
    "template": {},
    "max_prompt_tokens": {"max_prompt_tokens": 500},
    "max_tokens": {"max_tokens": 1500},
    "truncation": {"truncation": {"ratio": 0.5}},
    "offsets": {"offsets": False},
}
TOLD = {
    "input": r"the input was \.jsonl sha256 \w{12}, is now \.jsonl sha256 \w{12}",
    "tokenizer": r"tokenizer\.json was sha256 \w{12}, is now sha256 \w{12}",
    "template": r"the chat template was sha256 \w{12}, is now sha256 \w{12}",
    "max_prompt_tokens": "max_prompt_tokens was 1024, is now 500",
    "max_tokens": "max_tokens was 2048, is now 1500",
    "truncation": "truncation.ratio was None, is now 0.5",
    "offsets": "offsets was True, is now False",
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_never_uses_old_shards(tmp_path, small, tokenizer, pairs, what, finished, monkeypatch):
    out, tokens = tmp_path / "out", write_tokenizer(tmp_path / "tokens")
    run(str(pairs), tokens, out)
    if not finished:  # as a run that was killed before the manifest: shards, records and key are there
        with monkeypatch.context() as patch:
            patch.setattr(workspace.Workspace, "finish", lambda *_: os.kill)
            with pytest.raises(ArtifactError):
                run(str(pairs), tokens, tmp_path / "half")
        out = tmp_path / "half"
    if what == "input":
        text = pairs.read_text()
        pairs.write_text(text.replace("39 it is", "39 it was"))
    if what == "tokenizer":
        vocabulary = json.loads((tokens / "tokenizer.json").read_text())
        vocabulary["added_tokens"][0]["content"] = "<other>"
        (tokens / "tokenizer.json").write_text(json.dumps(vocabulary))
    if what == "template":
        (tokens / "chat_template.jinja").write_text(
            "{{ messages[0].content }}" + (tokens / "chat_template.jinja").read_text()
        )
    settings = CHANGES[what]
    if finished:
        old = contents(out)
        with pytest.raises(ArtifactError, match=rf"was made otherwise: {TOLD[what]}; choose.*overwrite=True"):
            run(str(pairs), tokens, out, **settings)
        assert contents(out) == old
        run(str(pairs), tokens, out, overwrite=True, **settings)
    else:
        run(str(pairs), tokens, out, **settings)
    run(str(pairs), tokens, tmp_path / "fresh", **settings)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_damaged_shard_of_a_killed_run_is_made_again(tmp_path, small, tokenizer, pairs, monkeypatch):
    run(str(pairs), tokenizer, tmp_path / "fresh")
    with monkeypatch.context() as patch:
        patch.setattr(workspace.Workspace, "finish", lambda *_: None)
        with pytest.raises(ArtifactError):
            run(str(pairs), tokenizer, tmp_path / "out")
    shard = tmp_path / "out/segments-00001.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    calls: list[Progress] = []
    run(str(pairs), tokenizer, tmp_path / "out", progress=calls.append)
    assert calls[0].found == calls[-1].shards - 1 > 1
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_an_input_that_changes_while_it_is_read(tmp_path, small, tokenizer, pairs):
    def grow(progress: Progress) -> None:
        if progress.shards == 2:
            with pairs.open("a") as file:
                file.write(json.dumps(row(99)) + "\n")

    with pytest.raises(ArtifactError, match=r"pairs\.jsonl changed while it was read; prepare again"):
        run(str(pairs), tokenizer, tmp_path / "out", progress=grow)
    assert not list((tmp_path / "out").glob("*.arrow"))
    assert run(str(pairs), tokenizer, tmp_path / "out").num_rows == 41


def test_other_files_are_never_touched(tmp_path, tokenizer, pairs):
    out = tmp_path / "mine"
    (out / "tokenizer").mkdir(parents=True)
    (out / "tokenizer/precious").write_text("x")
    with pytest.raises(ArtifactError, match=r"holds other files \(tokenizer\); choose a new or empty folder"):
        run(str(pairs), tokenizer, out, overwrite=True)
    assert contents(out) == {"tokenizer/precious": b"x"}
    run(str(pairs), tokenizer, tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"holds other files \(notes\.txt\)"):
        run(str(pairs), tokenizer, tmp_path / "out", overwrite=True)


# -- writers


def test_a_second_writer_is_refused(tmp_path, tokenizer, pairs):
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        lock.write("process 7 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match=r"out is being written by process 7 on elsewhere; wait for it"):
            run(str(pairs), tokenizer, out)
    assert run(str(pairs), tokenizer, out).num_rows == 40


def test_a_folder_that_cannot_be_written(tmp_path, small, tokenizer, pairs, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"^out must be a folder that can be written, got .*; choose another --out$"):
        run(str(pairs), tokenizer, tmp_path / "file")
    write, calls = workspace.write_shard, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", "segments-00002.arrow")
        return write(*args, **kwargs)

    monkeypatch.setattr(workspace, "write_shard", full)
    with pytest.raises(ArtifactError, match=r"No space left on device, .* are free; make room on the disk"):
        run(str(pairs), tokenizer, tmp_path / "out")
    monkeypatch.undo()
    run(str(pairs), tokenizer, tmp_path / "fresh")
    run(str(pairs), tokenizer, tmp_path / "out")
    assert len(contents(tmp_path / "out")) > 5
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "rai"}, r"engine must be one of local, ray, got 'rai'; did you mean 'ray'\?"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"format": "preferense"}, "did you mean 'preference'"),
    ],
)
def test_settings_are_checked(tmp_path, tokenizer, pairs, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(str(pairs), tokenizer, tmp_path / "out", **settings)


def test_the_error_of_a_missing_ray_names_its_extra(tmp_path, tokenizer, pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"engine 'ray' needs Ray: pip install 'pyprefopt\[ray\]'"):
        run(str(pairs), tokenizer, tmp_path / "out", engine="ray")


# -- killed

KILLER = """
import os, signal, sys
from pathlib import Path
from tests.data.prepared import contents, run, small_blocks

pairs, tokenizer, out = map(Path, sys.argv[1:4])
small_blocks()


def child(folder, deadly):
    # Nothing has run a kernel in this process, so that a fork is a fresh start without the imports.
    pid = os.fork()
    if pid == 0:
        calls = [0]
        for name in ("fsync", "replace", "unlink"):
            original = getattr(os, name)

            def step(*args, original=original, **kwargs):
                calls[0] += 1
                if calls[0] == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            setattr(os, name, step)
        run(str(pairs), tokenizer, folder, on_error="skip")
        os._exit(0)
    return os.waitpid(pid, 0)[1]


assert child(out / "whole", 0) == 0
whole = contents(out / "whole")
killed = 0
for deadly in range(1, 1000, int(sys.argv[4])):
    folder = out / f"killed-{deadly}"
    if child(folder, deadly) == 0:
        break
    killed += 1
    if deadly % 3 == 0:
        child(folder, 4)  # and killed again while it goes on
    assert child(folder, 0) == 0, deadly
    assert contents(folder) == whole, deadly
print(killed)
"""


@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_and_given_again_is_byte_identical(tmp_path, tokenizer, stride):
    """Killed before each write to disk becomes durable, each rename and each removal."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", 24, bad=(3, 20))
    command = [sys.executable, "-c", KILLER, pairs, tokenizer, tmp_path / "out", str(stride)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * stride > 25


@pytest.mark.parametrize("damage", ["cut", "[]", "types", "shards"])
def test_a_damaged_manifest_is_made_again_on_request(tmp_path, tokenizer, damage):
    pairs = tmp_path / "p.jsonl"
    pairs.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    manifest = tmp_path / "out/manifest.json"
    run(str(pairs), tokenizer, tmp_path / "out")
    whole = manifest.read_bytes()
    facts = json.loads(whole)
    wrong = {"types": {**facts, "rejected": 5}, "shards": {**facts, "shards": [{"file": 1}]}}.get(damage)
    manifest.write_bytes(json.dumps(wrong).encode() if wrong else {"cut": whole[:99], "[]": b"[]"}[damage])
    if damage != "types":
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            SegmentStore.open(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"out/manifest\.json is damaged.*overwrite=True"):
        run(str(pairs), tokenizer, tmp_path / "out")
    run(str(pairs), tokenizer, tmp_path / "out", overwrite=True)
    assert manifest.read_bytes() == whole


def test_a_damaged_record_of_bad_rows_is_told(tmp_path, small, tokenizer):
    pairs = write_pairs(tmp_path / "bad.jsonl", bad=(3,))
    run(str(pairs), tokenizer, tmp_path / "out", on_error="skip")
    (tmp_path / "out/rejected.jsonl").write_text("{")
    with pytest.raises(ArtifactError, match=r"record of bad rows is damaged: .*; prepare again with overwrite=True"):
        run(str(pairs), tokenizer, tmp_path / "out")
