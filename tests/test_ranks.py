from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from pyprefopt import ranks
from pyprefopt.errors import ArtifactError, ConfigError, TrainingError
from pyprefopt.pipeline.lock import RunLock
from pyprefopt.storage.folders import Folder
from pyprefopt.storage.locks import FolderLock


def test_without_a_launcher_this_is_rank_0_of_1(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()) == (0, 1, 0, 1)
    assert ranks.is_main()
    assert ranks.from_main(7) == 7
    assert ranks.any_rank(True)
    assert not ranks.any_rank(False)


def test_ranks_without_a_process_group_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    with pytest.raises(TrainingError, match="init_distributed"):
        ranks.any_rank(True)


def test_threads_are_cores_over_local_ranks(monkeypatch):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LOCAL_SIZE", "3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    try:
        assert ranks.set_threads() == 2
        assert os.environ["OMP_NUM_THREADS"] == "2"
        assert torch.get_num_threads() == 2
        assert ranks.set_threads(1) == 1
        with pytest.raises(ConfigError, match="threads must be > 0"):
            ranks.set_threads(0)
        assert ranks.set_threads(32) == 32
        with pytest.raises(
            ConfigError, match="threads must be at most 32, 4 for each of the 8 cores of this machine, got 33"
        ):
            ranks.set_threads(33)
        assert torch.get_num_threads() == 32
    finally:
        torch.set_num_threads(before)


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    code = (
        "import sys; from pyprefopt.pipeline.lock import RunLock\n"
        "with RunLock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(ArtifactError, match=rf"is being written by process {holder.pid} on .*output_dir"),
        RunLock(tmp_path),
    ):
        pass
    holder.kill()  # a kill gives the lock back as well
    holder.communicate()
    with RunLock(tmp_path), pytest.raises(ArtifactError), RunLock(tmp_path):
        pass


@pytest.mark.parametrize("below", ["", "below"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    for lock, setting in ((RunLock(folder), "output_dir"), (FolderLock(folder), "out")):
        message = rf"^{setting} must be a folder that can be written, got '{folder}' .*; choose another --{setting}$"
        with pytest.raises(ConfigError, match=message), lock:
            pass


def test_each_rank_has_its_own_lock(tmp_path, monkeypatch):
    with RunLock(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with RunLock(tmp_path) as lock:
            assert lock.path.name == ".lock-1"


def test_waiting_for_a_manifest_of_the_right_key(tmp_path):
    folder = Folder(tmp_path)
    folder.finish({"key": "old"})
    write = threading.Timer(0.2, lambda: folder.finish({"key": "new", "rows": 3}))
    write.start()
    found = ranks.wait_until(lambda: folder.made_for("new"), tmp_path / "manifest.json", poll=0.02)
    assert found == {"key": "new", "rows": 3}


def test_waiting_ends_with_the_launcher(tmp_path, monkeypatch):
    parents = iter([100, 100, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(ArtifactError, match="launcher of rank 0 has ended"):
        ranks.wait_until(lambda: Folder(tmp_path).made_for("key"), tmp_path, poll=0.01)


def test_the_deepspeed_command_is_found_behind_its_launcher():
    ask = "from pyprefopt.ranks import deepspeed_runner; print(deepspeed_runner())"
    launch = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ask!r}])"
    for name, expected in (("deepspeed.launcher.launch", os.getpid()), ("something.else", None)):
        run = subprocess.run([sys.executable, "-c", launch, name], capture_output=True, text=True, check=True)
        assert run.stdout.split() == [str(expected)]


def test_the_end_of_the_deepspeed_command_is_noticed_whenever_it_comes(monkeypatch):
    assert not ranks.runner_has_ended()
    monkeypatch.setattr(ranks, "_RUNNER", 12345)  # it was there as the rank began
    assert ranks.runner_has_ended()


def test_a_runs_lock_is_the_folders_lock(tmp_path):
    with RunLock(tmp_path), pytest.raises(ArtifactError, match="being written"), FolderLock(tmp_path):
        pass
