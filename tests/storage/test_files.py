"""Files that are there in full or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyprefopt.errors import ArtifactError
from pyprefopt.storage.files import append, atomic_write, explain_writing, explaining, show_bytes, used_bytes
from tests.pipeline.test_disk import largest_file


def test_what_cannot_be_appended_whole_is_not_appended(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "lines"
    append(file, b"one\n")
    with largest_file(6), pytest.raises(OSError, match="lines") as error:
        append(file, b"two\n")
    assert (error.value.errno, file.read_bytes()) == (errno.EFBIG, b"one\n")
    append(file, b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    file = atomic_write(tmp_path / "file", b"old")
    with largest_file(4), pytest.raises(OSError, match=r"File too large: .*/file'"):
        atomic_write(file, b"longer")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: full (os error 28)")])
def test_a_full_disk_is_told_with_what_is_free(kind: Exception, tmp_path: Path) -> None:
    told = r"^.*/x: No space left on device, [\d,.]+ \wiB are free; make room"
    with pytest.raises(ArtifactError, match=told), explaining(tmp_path / "x"):
        raise kind
    assert "are free" not in explain_writing(OSError(errno.EACCES, "no"), tmp_path)


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), explaining(tmp_path):
        raise RuntimeError("shapes differ")


def test_sizes(tmp_path: Path) -> None:
    assert [show_bytes(size) for size in (0, 1023, 1024, 18_901_660, 3 * 2**30)] == [
        "0 bytes", "1,023 bytes", "1 KiB", "18 MiB", "3 GiB",
    ]  # fmt: skip
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert (used_bytes(tmp_path), used_bytes(tmp_path / "none")) == (5, 0)
