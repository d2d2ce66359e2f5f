"""Data files: which ones a path, glob, folder or list means, and their bytes and batches as streams."""

from __future__ import annotations

import glob
import lzma
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pyprefopt.data.arrow import first_line
from pyprefopt.data.files.unfolding import Unfolding
from pyprefopt.errors import DataError, did_you_mean
from pyprefopt.storage.files import check_name, explain_reading, system_number
from pyprefopt.storage.hub import EMBEDDED_DATA

PIECE_BYTES = 1 << 20  # read at once from a text file
CONTAINERS = {  # suffix -> container
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc", ".arrows"), "arrow"),
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}  # of text files
KNOWN = ".jsonl, .json, .csv, .tsv (each also .gz, .zst, .bz2 or .xz), .parquet or .arrow (.feather, .ipc)"
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00"}  # their first bytes
_FOREIGN = {  # first bytes of what is no text -> what it is, and the remedy
    _MAGIC["gzip"]: ("gzip", "add .gz to its name"),
    _MAGIC["zstd"]: ("zstd", "add .zst to its name"),
    _MAGIC["bz2"] + b"91AY&SY": ("bzip2", "add .bz2 to its name"),  # longer: a text may begin with BZh
    _MAGIC["xz"]: ("xz", "add .xz to its name"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1\x15": ("Parquet", "name it .parquet"),
    b"ARROW1\x00\x00": ("Arrow", "name it .arrow"),
    b"\xff\xfe": ("UTF-16", "convert it to UTF-8: iconv -f utf-16 -t utf-8 OLD > NEW"),
    b"\xfe\xff": ("UTF-16", "convert it to UTF-8: iconv -f utf-16 -t utf-8 OLD > NEW"),
}
_BOM = b"\xef\xbb\xbf"
_COMPANIONS = ("readme", "license", "licence", "_success", "dataset_info", "dataset_infos", "state", "datacard")
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class DataFile:
    """One file, with what follows from its name."""

    path: Path
    container: str  # json, csv, parquet, arrow
    compression: str | None  # gzip, zstd, bz2, xz

    @property
    def name(self) -> str:
        """As in rejects."""
        return str(self.path)

    @property
    def suffix(self) -> str:
        """Without that of the compression."""
        return Path(self.path.stem if self.compression else self.path.name).suffix.lower()

    @property
    def kind(self) -> str:
        """How its bytes are read: the last parts of its name."""
        return f"{self.suffix} {self.compression}" if self.compression else self.suffix

    @property
    def delimiter(self) -> str:
        """Between the cells of a CSV file."""
        return "\t" if self.suffix == ".tsv" else ","

    def layout(self, head: bytes) -> str:
        """How the rows of a text file that begins so are separated: lines, array or csv."""
        if self.container != "csv" and self.suffix == ".json" and head.removeprefix(_BOM).lstrip()[:1] == b"[":
            return "array"
        if b"\r" in head.strip() and b"\n" not in head:
            raise DataError(
                f"{self.name}: its lines end with a carriage return alone, as on old Macs; write line feeds: "
                "tr '\\r' '\\n' < OLD > NEW"
            )
        return "csv" if self.container == "csv" else "lines"


def find_files(source: Paths) -> tuple[list[DataFile], list[str]]:
    """The files that a source names, sorted by path, and the files of a folder that hold no data (README, hidden).

    Raises DataError where there are none, where one is of an unknown kind, and where they are of several kinds.
    """
    ignored: list[str] = []
    if isinstance(source, (str, Path)):
        with reachable(source):
            paths = _one(Path(source).expanduser(), ignored)
    else:
        for entry in source:
            if not isinstance(entry, (str, Path)):
                raise DataError(f"a list must name files, got {type(entry).__name__}; pass rows as pl.DataFrame(rows)")
        paths = []
        for entry in source:
            with reachable(entry):
                paths += _one(Path(entry).expanduser(), ignored)
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise DataError(f"{twice} is named twice; name each file once")
    files = [data_file(path) for path in sorted(paths)]
    for file in files:
        with reachable(file.path):
            file.path.open("rb").close()
    if isinstance(source, (str, Path)):  # a list names what it means
        kinds = sorted({file.container for file in files})
        if len(kinds) > 1:
            shown = "; ".join(f"{kind}: {next(f.path for f in files if f.container == kind)}" for kind in kinds)
            raise DataError(f"the files of one source must be of one kind, got {shown}; name those you mean by a glob")
    if not files:
        raise DataError("the list of files is empty; name at least one")
    return files, ignored


@contextmanager
def reachable(path: str | Path) -> Iterator[None]:
    """DataError for a path that the system does not let us follow, or that no message can show."""
    check_name(path)
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {explain_reading(error)}") from None


def _one(path: Path, ignored: list[str]) -> list[Path]:
    if path.is_dir():
        return _folder(path, ignored)
    if path.exists():
        if not path.is_file():
            raise DataError(f"{path} must be a file or a folder; it is neither (pipes cannot be read twice)")
        return [path]
    if glob.has_magic(str(path)):
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
        if not found:
            raise DataError(f"no file matches {path}")
        return found
    if re.match(r"[a-z][a-z0-9]+:/", str(path)):
        raise DataError(f"{path} must be a file on this machine, not an address; download it and give the file")
    near = did_you_mean(path.name, [EMBEDDED_DATA, *(entry.name for entry in path.parent.glob("*"))])
    if not near and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)) and not path.parent.exists() and not path.suffix:
        near = "; if a data set of the hub is meant, download its files, or in Python give load_dataset(…)['train']"
    raise DataError(f"{path} must be a file; there is none{near or '; check the path'}")


def _folder(folder: Path, ignored: list[str]) -> list[Path]:
    entries = sorted(folder.iterdir())
    aside = {e for e in entries if e.name.startswith(".") or e.name.split(".")[0].lower() in _COMPANIONS}
    folders = [entry.name for entry in entries if entry.is_dir() and entry not in aside]
    found = [entry for entry in entries if entry.is_file() and entry not in aside]
    if folders:
        raise DataError(
            f"{folder} must hold data files alone, it holds the folder '{folders[0]}'; name the files by a glob, "
            f"as '{folder}/**/*.parquet'"
        )
    if not found:
        raise DataError(f"{folder} holds no data file; known are {KNOWN}")
    ignored.extend(str(entry) for entry in sorted(aside))
    return found


def data_file(path: Path) -> DataFile:
    """The file by its name; DataError where it is of no known kind."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    suffix = Path(path.stem).suffix if compression else path.suffix
    container = CONTAINERS.get(suffix.lower())
    check_name(path)
    if container is None or (compression and container not in ("json", "csv")):
        raise DataError(f"{path} must be {KNOWN}; got '{''.join(path.suffixes[-2:])}'")
    return DataFile(path, container, compression)


@contextmanager
def readable(name: str, what: str) -> Iterator[None]:
    """Reading errors as a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, EOFError, lzma.LZMAError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(error, OSError) and system_number(error):
            raise DataError(f"{name} cannot be read: {explain_reading(error)}") from error
        raise DataError(
            f"{name} cannot be read as {what}: {first_line(error)}; it may be cut short or damaged: fetch or write it "
            "again"
        ) from error


@dataclass
class Meter:
    """How much of a file has been read: bytes on disk."""

    total: int = 0
    read: int = 0


def pieces(file: DataFile, meter: Meter) -> Iterator[bytes]:
    """The text of a file, decompressed, piece by piece; `meter` follows."""
    with readable(file.name, file.suffix + (f" ({file.compression})" if file.compression else "")):
        raw: Any = pa.OSFile(str(file.path))
        if file.compression == "xz":
            stream: Any = lzma.open(raw)  # noqa: SIM115  (closed below)
        else:
            stream = pa.CompressedInputStream(raw, file.compression) if file.compression else raw
        with raw, stream:
            head = raw.read(16)
            raw.seek(0)
            if file.compression is None:
                _check_text(file, head)
            elif not head.startswith(_MAGIC[file.compression]):
                raise DataError(
                    f"{file.name} must be {file.compression}, as its name says, but its bytes are not; is it plain "
                    f"text, name it without '{file.path.suffix}'"
                )
            unfolding, done = Unfolding(file.name, raw.size()), 0
            while piece := stream.read(PIECE_BYTES):
                meter.read = raw.tell()
                unfolding.add(len(piece), f"after {done:,} bytes of text")
                done += len(piece)
                yield piece


def _check_text(file: DataFile, head: bytes) -> None:
    """DataError where the first bytes are those of something else than UTF-8 text."""
    for magic, (what, remedy) in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{file.name} must be text, as its name says, but its bytes are {what}; {remedy}")
