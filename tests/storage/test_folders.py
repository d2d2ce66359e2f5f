"""A folder: whole or not, whose it is, as it was written or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyprefopt.errors import ArtifactError
from pyprefopt.storage.folders import Folder, replacing


@pytest.fixture
def half_made(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "stage")
    assert not folder.begin({"key": "a"})
    (folder.path / "deep").mkdir()
    (folder.path / "deep" / "part").write_text("content")
    return folder


def test_what_a_key_has_left_is_for_that_key_alone(half_made: Folder) -> None:
    assert not half_made.begin({"key": "a", "run": "another"})
    assert half_made.pending == {"key": "a", "run": "another"}
    assert (half_made.path / "deep" / "part").exists()
    assert half_made.begin({"key": "b"})
    assert [path.name for path in half_made.path.iterdir()] == ["key.json"]


@pytest.mark.parametrize("pending", [None, "{", "5"])
def test_what_is_pending_for_nobody_is_cleared_away(half_made: Folder, pending: str | None) -> None:
    (half_made.path / "key.json").unlink() if pending is None else (half_made.path / "key.json").write_text(pending)
    assert half_made.pending == {}
    assert not half_made.begin({"key": "a"})
    assert not (half_made.path / "deep").exists()


def test_whole_with_its_manifest_alone(half_made: Folder) -> None:
    assert not half_made.is_finished
    with pytest.raises(ArtifactError, match="is not a finished artifact"):
        half_made.manifest  # noqa: B018
    half_made.finish({"rows": 3})
    assert half_made.is_finished
    assert half_made.manifest == {"rows": 3}
    half_made.begin({"key": "a"})
    assert not half_made.is_finished
    half_made.remove()
    assert not half_made.path.exists()


def test_what_is_not_as_it_was_written_is_named(half_made: Folder) -> None:
    half_made.finish({"files": half_made.hashes()})
    files = half_made.manifest["files"]
    assert list(files) == ["deep/part", "key.json"]
    assert half_made.altered(files, alone=True) is None
    (half_made.path / "more").write_text("x")
    assert half_made.altered(files) is None
    assert half_made.altered(files, alone=True) == "more"
    (half_made.path / "deep" / "part").write_text("Content")
    assert half_made.altered(files) == "deep/part"
    (half_made.path / "deep" / "part").unlink()
    assert half_made.altered(files) == "deep/part"


def test_a_folder_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    for number in range(2):
        with replacing(target) as partial:
            (partial / f"file-{number}").write_text("x")
        assert [path.name for path in target.iterdir()] == [f"file-{number}"]
    (tmp_path / ".policy.partial-1").mkdir()  # left by a killed process
    with pytest.raises(FileNotFoundError), replacing(target) as partial:
        (partial / "half").rename(tmp_path / "nowhere" / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert [path.name for path in target.iterdir()] == ["file-1"]
