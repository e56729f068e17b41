"""The file of a backup: a zip of JSON lines and checkpoints, with a sum of every member.

It may come from anywhere: nothing in it is run (no pickle), no name of its own becomes a path,
sizes are bounded before they are read, and all of it is checked before anything is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dlnn_search._version import __version__
from dlnn_search.archive.rows import (
    STUDY_NAME,
    TABLES,
    StudyRows,
    as_line,
    bring_up,
    check_row,
    check_whole,
)
from dlnn_search.errors import StorageError, UsageError
from dlnn_search.storage.optuna import check_trial
from dlnn_search.storage.schema import SCHEMA_VERSION

FORMAT = "dlnn-search backup"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
OTHER_LEDGER = "ledger.jsonl"
KINDS = ("study", "optuna_study", *TABLES, "trials")

MAX_MANIFEST_BYTES = 32 * 2**20
MAX_MEMBERS = 200_000
#: Of all rows together, unpacked: 100,000 trials of 100 epochs take about a tenth.
MAX_ROWS_BYTES = 4 * 2**30
MAX_LINE_BYTES = 64 * 2**20
#: JSON lines of ours shrink to a thirtieth at most; more than that is made to fill a memory.
MAX_RATIO = 400
#: Below it the ratio of a member does not matter.
SMALL_BYTES = 2**20
CHUNK_BYTES = 2**20

_NAME = re.compile(
    rf"manifest\.json|ledger\.jsonl|studies/\d{{1,5}}/({'|'.join(KINDS)})\.jsonl"
    r"|studies/\d{1,5}/checkpoints/\d{1,9}\.npz",
    re.ASCII,
)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,  # encrypted; nested without end
    EOFError,
    OverflowError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Member(_Strict):
    """One member's size unpacked, and its sum."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class StudyEntry(_Strict):
    """One study of a backup: how many rows of each kind, and their sums."""

    name: str = Field(pattern=f"^{STUDY_NAME.pattern}$")
    counts: dict[str, int]
    digests: dict[str, str]


class Manifest(_Strict):
    """What a backup holds."""

    format: str
    format_version: int
    schema_version: int
    program: str
    optuna: str
    taken_at: str
    studies: list[StudyEntry]
    members: dict[str, Member]


class BackupWriter:
    """Writes a backup, which is there when `finish` was called, and not before."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise UsageError(
                f"'{path}' exists already. A backup never replaces a file: choose another name."
            )
        if not path.parent.is_dir():
            raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._members: dict[str, Member] = {}
        self._studies: list[StudyEntry] = []
        self._zip = zipfile.ZipFile(self._partial, "x", allowZip64=True)

    def add_study(self, copy: StudyRows) -> int:
        """Add a study's rows; return its number within the file."""
        number = len(self._studies)
        self._studies.append(
            StudyEntry(name=copy.name, counts=copy.counts(), digests=copy.digests())
        )
        kinds: dict[str, list[Any]] = {
            "study": [copy.study],
            "optuna_study": [] if copy.optuna_study is None else [copy.optuna_study],
            "trials": copy.trials,
            **copy.rows,
        }
        for kind in KINDS:
            self._add_lines(f"studies/{number}/{kind}.jsonl", kinds[kind])
        return number

    def add_other_ledger(self, rows: list[dict[str, Any]]) -> None:
        """Add openings that belong to none of the studies."""
        self._add_lines(OTHER_LEDGER, rows)

    def add_checkpoint(self, study: int, slot: int, path: Path) -> bool:
        """Add a slot's checkpoint; return False where its file is gone meanwhile."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        with file:  # a worker replaces the file by another; this one stays whole
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            self._add(f"studies/{study}/checkpoints/{slot}.npz", chunks, zipfile.ZIP_STORED)
        return True

    def finish(self) -> int:
        """Write the manifest, put the file in its place, and return its size in bytes."""
        manifest = Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            schema_version=SCHEMA_VERSION,
            program=__version__,
            optuna=optuna.__version__,
            taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
            studies=self._studies,
            members=self._members,
        )
        self._zip.writestr(
            MANIFEST, manifest.model_dump_json(indent=1), compress_type=zipfile.ZIP_DEFLATED
        )
        self._zip.close()
        with self._partial.open("rb+") as file:
            os.fsync(file.fileno())
        # A link, unlike a rename, replaces nothing that came to be meanwhile.
        try:
            os.link(self._partial, self._path)
            self._partial.unlink()
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            self._partial.replace(self._path)
        return self._path.stat().st_size

    def discard(self) -> None:
        """Remove what is not finished."""
        with contextlib.suppress(OSError, ValueError):
            self._zip.close()
        with contextlib.suppress(OSError):
            self._partial.unlink()

    def _add_lines(self, name: str, rows: list[Any]) -> None:
        self._add(name, (as_line(row) for row in rows), zipfile.ZIP_DEFLATED)

    def _add(self, name: str, chunks: Iterator[bytes], compression: int) -> None:
        info = zipfile.ZipInfo(name, date_time=datetime.now().timetuple()[:6])
        info.compress_type = compression
        info.external_attr = 0o600 << 16
        sha256, size = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=True) as member:
            for chunk in chunks:
                member.write(chunk)
                sha256.update(chunk)
                size += len(chunk)
        self._members[name] = Member(sha256=sha256.hexdigest(), size_bytes=size)


class BackupReader:
    """A backup that was checked from its first byte to its last."""

    def __init__(self, path: Path) -> None:
        """Open a backup and check every member.

        Raises:
            UsageError: If there is no such file.
            StorageError: If it is no backup, damaged, or of a newer program.
        """
        self._path = path
        try:
            self._file: IO[bytes] = path.open("rb")
        except (FileNotFoundError, IsADirectoryError):
            raise UsageError(f"There is no backup at '{path}'.") from None
        except OSError as error:
            raise StorageError(f"Cannot read '{path}': {error.strerror}.") from error
        try:
            with self._damage_told():
                self._zip = zipfile.ZipFile(self._file)
                self.manifest = self._read_manifest()
                self._check_names()
                for name, member in self.manifest.members.items():
                    self._check_member(name, member)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_study(self, number: int) -> StudyRows:
        """Return a study's rows, each checked against its table.

        Raises:
            StorageError: If a row is none, or rows do not belong together.
        """
        entry = self.manifest.studies[number]
        with self._damage_told():
            found = {kind: self._lines(f"studies/{number}/{kind}.jsonl") for kind in KINDS}
            for kind in ("study", *TABLES):
                for row in found[kind]:
                    check_row(kind, row)
            for trial in found["trials"]:
                check_trial(trial)
            if [trial["number"] for trial in found["trials"]] != list(range(len(found["trials"]))):
                raise ValueError("the trials are not numbered one by one")
            (study,) = found["study"]
            (optuna_study,) = found["optuna_study"] or [None]
            copy = StudyRows(
                study, {table: found[table] for table in TABLES}, optuna_study, found["trials"]
            )
            check_whole(copy)
            if copy.name != entry.name or copy.digests() != entry.digests:
                raise ValueError(f"the rows of '{entry.name}' are not those of its manifest")
            bring_up(copy)
            return copy

    def other_ledger(self) -> list[dict[str, Any]]:
        """Return the openings that belong to none of the studies."""
        if OTHER_LEDGER not in self.manifest.members:
            return []
        with self._damage_told():
            rows = self._lines(OTHER_LEDGER)
            for row in rows:
                check_row("ledger", row)
            return rows

    def checkpoints(self, number: int) -> dict[int, str]:
        """Return the members that hold a study's checkpoints, by slot."""
        prefix = f"studies/{number}/checkpoints/"
        return {
            int(Path(name).stem): name for name in self.manifest.members if name.startswith(prefix)
        }

    def copy_member(self, name: str, target: IO[bytes]) -> None:
        """Copy a member's bytes into an open file."""
        with self._damage_told():
            for chunk in self._chunks(name, self.manifest.members[name].size_bytes):
                target.write(chunk)

    def _read_manifest(self) -> Manifest:
        names = self._zip.namelist()
        if MANIFEST not in names:
            raise ValueError("it has no manifest")
        if len(names) > MAX_MEMBERS or len(names) != len(set(names)):
            raise ValueError("it has too many members, or one twice")
        info = self._zip.getinfo(MANIFEST)
        if info.file_size > MAX_MANIFEST_BYTES:
            raise ValueError("its manifest is too large")
        text = b"".join(self._chunks(MANIFEST, info.file_size))
        plain = json.loads(text)
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ValueError("its manifest is not a backup's")
        for key, ours in (("format_version", FORMAT_VERSION), ("schema_version", SCHEMA_VERSION)):
            if isinstance(plain.get(key), int) and plain[key] > ours:
                raise StorageError(
                    f"The backup '{self._path}' was made by dlnn-search {plain.get('program')} "
                    f"({key.replace('_', ' ')} {plain[key]}); this is dlnn-search {__version__}, "
                    f"which reads up to {ours}. Install the newer dlnn-search."
                )
        return Manifest.model_validate_json(text)

    def _check_names(self) -> None:
        names = set(self._zip.namelist()) - {MANIFEST}
        if names != set(self.manifest.members):
            raise ValueError("its members are not those of its manifest")
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"a member is called {name[:60]!r}")
        needed = {
            f"studies/{number}/{kind}.jsonl"
            for number in range(len(self.manifest.studies))
            for kind in KINDS
        }
        if not needed <= names:
            raise ValueError("a study lacks rows")
        if len({entry.name for entry in self.manifest.studies}) < len(self.manifest.studies):
            raise ValueError("it has a study twice")
        sizes = [self._zip.getinfo(name).file_size for name in names if name.endswith(".jsonl")]
        if sum(sizes) > MAX_ROWS_BYTES:
            raise ValueError(f"its rows take more than {MAX_ROWS_BYTES:,} bytes")

    def _check_member(self, name: str, member: Member) -> None:
        info = self._zip.getinfo(name)
        if info.file_size != member.size_bytes:
            raise ValueError(f"'{name}' has another size than in the manifest")
        if name.endswith(".npz") and info.compress_size != info.file_size:
            raise ValueError(f"'{name}' is packed, but a checkpoint never is")
        if info.file_size > max(SMALL_BYTES, MAX_RATIO * info.compress_size):
            raise ValueError(f"'{name}' unpacks to {info.file_size:,} bytes: made to fill a disk")
        sha256 = hashlib.sha256()
        for chunk in self._chunks(name, info.file_size):
            sha256.update(chunk)
        if sha256.hexdigest() != member.sha256:
            raise ValueError(f"'{name}' has another sum than in the manifest")

    def _chunks(self, name: str, size: int) -> Iterator[bytes]:
        """Unpack a member, and never more of it than it says it has."""
        left = size
        with self._zip.open(name) as member:
            while chunk := member.read(min(CHUNK_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise ValueError(f"'{name}' is longer than it says")
                yield chunk
        if left:
            raise ValueError(f"'{name}' is shorter than it says")

    def _lines(self, name: str) -> list[Any]:
        rest, rows = b"", []
        for chunk in self._chunks(name, self.manifest.members[name].size_bytes):
            *lines, rest = (rest + chunk).split(b"\n")
            rows += [json.loads(line) for line in lines]
            if len(rest) > MAX_LINE_BYTES:
                raise ValueError(f"'{name}' has a line without end")
        if rest:
            raise ValueError(f"'{name}' is cut off")
        return rows

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            if str(error).startswith("The backup"):
                raise
            raise self._damaged(error) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._damaged(f"{where}: {first['msg']}") from error
        except _DAMAGE as error:
            raise self._damaged(error or type(error).__name__) from error
        except OSError as error:
            raise StorageError(f"Cannot read '{self._path}': {error.strerror}.") from error

    def _damaged(self, why: object) -> StorageError:
        return StorageError(
            f"The backup '{self._path}' is damaged, or no backup of dlnn-search: {str(why)[:300]}. "
            "Nothing was written. Restore another backup."
        )
