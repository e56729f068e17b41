"""A backup's file is untrusted: it is read whole and sound, or refused in words."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlnn_search.archive import file as backup_file
from dlnn_search.archive.file import BackupReader, BackupWriter
from dlnn_search.archive.rows import StudyRows, bring_up
from dlnn_search.errors import DlnnSearchError, StorageError

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def a_copy() -> StudyRows:
    slot = {"number": 0, "state": "done", "fence": 1, "losses": 0, "told": 1, "spent_seconds": 0.5}
    return StudyRows(
        study={
            "name": "some-study",
            "definition": {"settings": {"direction": "minimize"}, "code": "x = 'ü'"},
            "created_at": 1.7e9,
            "control": "run",
            "lease_seconds": 120.0,
            "wall_used_seconds": 0.0,
        },
        rows={
            "slots": [
                {**slot, "trial_number": 0, "outcome": "complete", "value": 0.1 + 0.2},
                {**slot, "number": 1, "state": "open", "told": 0, "reused_from": 0},
            ],
            "curves": [
                {
                    "slot": 0,
                    "epoch": 1,
                    "metrics": {"loss": 0.5},
                    "seconds": 1.5,
                    "images_per_second": 1e4,
                }
            ],
            "events": [{"at": 1.7e9, "kind": "lost", "slot": 0, "words": "Lost."}],
            "artifacts": [],
            "ledger": [],
        },
        optuna_study={"directions": ["MINIMIZE"], "user_attrs": {}, "system_attrs": {"a": [1]}},
        trials=[
            {
                "number": 0,
                "state": "COMPLETE",
                "values": [0.1 + 0.2],
                "start": "2026-01-01T00:00:00.000001+00:00",
                "complete": "2026-01-01T00:00:01+00:00",
                "params": {
                    "rate": [
                        0.5,
                        '{"name": "FloatDistribution", "attributes": '
                        '{"step": null, "low": 0.0, "high": 1.0, "log": false}}',
                    ]
                },
                "user_attrs": {},
                "system_attrs": {},
                "steps": [[1, 0.5]],
            }
        ],
    )


CHECKPOINT = bytes(range(256)) * 40


def write(path: Path, copy: StudyRows | None = None) -> Path:
    checkpoint = path.with_name("last.npz")
    checkpoint.write_bytes(CHECKPOINT)
    writer = BackupWriter(path)
    writer.add_study(copy or a_copy())
    assert writer.add_checkpoint(0, 1, checkpoint)
    assert not writer.add_checkpoint(0, 2, path.with_name("none"))
    writer.add_other_ledger([])
    writer.finish()
    return path


def read(path: Path) -> tuple[StudyRows, dict[int, bytes]]:
    reader = BackupReader(path)
    try:
        found = {}
        for slot, name in reader.checkpoints(0).items():
            target = path.with_name("copied")
            with target.open("wb") as file:
                reader.copy_member(name, file)
            found[slot] = target.read_bytes()
        return reader.read_study(0), found
    finally:
        reader.close()


def refused(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        read(path)
    return str(caught.value)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("sound") / "b.zip").read_bytes()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read(write(tmp_path / "b.zip")) == (a_copy(), {1: CHECKPOINT})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["b.zip", "copied", "last.npz"]


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_refused(sound: bytes, share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.zip"
    path.write_bytes(sound[: int(len(sound) * share)])
    assert "Nothing was written" in refused(path)


@settings(max_examples=400, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_change_nothing(
    sound: bytes, data: st.DataObject, tmp_path: Path
) -> None:
    flips = data.draw(
        st.lists(
            st.tuples(st.integers(0, len(sound) - 1), st.integers(1, 255)), min_size=1, max_size=3
        )
    )
    damaged = bytearray(sound)
    for where, mask in flips:
        damaged[where] ^= mask
    path = tmp_path / "flipped.zip"
    path.write_bytes(damaged)
    try:
        found = read(path)
    except DlnnSearchError:
        return
    assert found == (a_copy(), {1: CHECKPOINT})


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(content=st.binary(max_size=500))
def test_any_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    assert "damaged, or no backup of dlnn-search" in refused(path)


def forge(path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """Write a backup whose sums are right and whose members are not what they should be."""
    write(path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    change(members, manifest)
    manifest["members"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in members.items()
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            stored = zipfile.ZIP_STORED if name.endswith(".npz") else None
            file.writestr(name, content, compress_type=stored)
        file.writestr("manifest.json", json.dumps(manifest))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "studies/0/checkpoints/../../../evil.npz",
        "studies/0/checkpoints/1.npz/",
        "studies/0/checkpoints/1.PNG",
        "studies\\0\\slots.jsonl",
        "studies/0/checkpoints/１.npz",
        "C:evil",
    ],
)
def test_a_name_that_is_none_of_ours_is_refused(name: str, tmp_path: Path) -> None:
    forge(tmp_path / "b.zip", lambda members, _: members.update({name: b"x"}))
    said = refused(tmp_path / "b.zip")
    assert "a member is called" in said or "not those of its manifest" in said


@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
@given(name=st.text(min_size=1, max_size=40).filter(lambda name: "\0" not in name))
def test_a_study_may_have_no_name_that_leaves_its_folder(name: str, tmp_path: Path) -> None:
    copy = a_copy()
    copy.study["name"] = name
    (tmp_path / "b.zip").unlink(missing_ok=True)
    is_folder = name not in (".", "..") and "/" not in name
    try:
        write(tmp_path / "b.zip", copy)
        found, _ = read(tmp_path / "b.zip")
    except (StorageError, ValueError):
        for partial in tmp_path.glob(".b.zip.*"):
            partial.unlink()
        return
    assert is_folder
    assert found.name == name
    assert name.isascii()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def add(members: dict[str, bytes], _: dict[str, Any]) -> None:
        members["studies/0/events.jsonl"] = b" " * 300_000_000

    path = forge(tmp_path / "b.zip", add)
    assert path.stat().st_size < 1_000_000
    assert "made to fill a disk" in refused(path)


def test_a_checkpoint_that_is_packed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b.zip")
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    assert "a checkpoint never is" in refused(path)


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("studies/0/events.jsonl", b"")
    assert "one twice" in refused(path)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "b.zip")
    monkeypatch.setattr(backup_file, "MAX_ROWS_BYTES", 100)
    assert "take more than 100 bytes" in refused(path)
    monkeypatch.undo()
    monkeypatch.setattr(backup_file, "MAX_MANIFEST_BYTES", 100)
    assert "manifest is too large" in refused(path)


def test_a_backup_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    for key in ("format_version", "schema_version"):
        path = tmp_path / f"{key}.zip"
        forge(path, lambda _, manifest, key=key: manifest.update({key: 99}))  # type: ignore[misc]
        said = refused(path)
        assert "Install the newer dlnn-search" in said
        assert "99" in said


class _Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


BAD_ROWS: dict[str, tuple[str, object]] = {
    "another table's field": ("events", {"at": 1.0, "kind": "a", "words": "b", "user": "c"}),
    "an id": ("events", {"id": 7, "at": 1.0, "kind": "a", "words": "b"}),
    "a missing field": ("events", {"at": 1.0, "kind": "a"}),
    "a word for a number": ("events", {"at": "now", "kind": "a", "words": "b"}),
    "a word too long": ("events", {"at": 1.0, "kind": "a" * 33, "words": "b"}),
    "a zero byte": ("events", {"at": 1.0, "kind": "a\0", "words": "b"}),
    "a slot that is not there": ("events", {"at": 1.0, "kind": "a", "words": "b", "slot": 9}),
    "no row": ("events", [1, 2]),
    "a held slot": (
        "slots",
        {"number": 0, "state": "held", "fence": 1, "losses": 0, "told": 0},
    ),
    "a number too large": (
        "slots",
        {"number": 2**40, "state": "open", "fence": 1, "losses": 0, "told": 0},
    ),
    "a trial that is none": ("trials", {"number": 0}),
    "no study of Optuna's": ("optuna_study", {"directions": ["SIDEWAYS"]}),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_rows_that_no_table_takes_are_refused(what: str, tmp_path: Path) -> None:
    kind, row = BAD_ROWS[what]

    def change(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
        content = json.dumps(row).encode() + b"\n"
        members[f"studies/0/{kind}.jsonl"] = content
        manifest["studies"][0]["digests"][kind] = hashlib.sha256(content).hexdigest()

    assert "Nothing was written" in refused(forge(tmp_path / "b.zip", change))


@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
@given(
    kind=st.sampled_from(backup_file.KINDS),
    row=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["number", "state", "name", "slot", "epoch", "params", "values", "a"]
                ),
                inner,
                max_size=6,
            )
        ),
        max_leaves=8,
    ),
)
def test_any_row_is_read_or_refused_in_words(kind: str, row: object, tmp_path: Path) -> None:
    def change(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
        content = json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        members[f"studies/0/{kind}.jsonl"] = content
        manifest["studies"][0]["digests"][kind] = hashlib.sha256(content).hexdigest()

    (tmp_path / "b.zip").unlink(missing_ok=True)
    refused(forge(tmp_path / "b.zip", change))


@pytest.mark.parametrize("content", [pickle.dumps(_Evil()), b"[" * 200_000, b"\xff\xfe", b"{}"])
def test_what_is_no_json_is_neither_run_nor_read(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def change(members: dict[str, bytes], _: dict[str, Any]) -> None:
        members["studies/0/events.jsonl"] = content + b"\n"

    assert "Nothing was written" in refused(forge(tmp_path / "b.zip", change))
    assert not (tmp_path / "evil").exists()


def test_rows_of_version_2_that_waited_or_had_another_s_result_say_so_when_they_are_read(
    tmp_path: Path,
) -> None:
    copy = a_copy()
    first, again = copy.rows["slots"]
    again |= {"state": "done", "trial_number": 1, "outcome": "complete", "value": 0.5}
    waiting = {**first, "number": 2, "state": "open", "waits_for": 0}
    del waiting["trial_number"], waiting["outcome"]
    copy.rows["slots"].append(waiting)
    copy.trials.append({**copy.trials[0], "number": 1, "user_attrs": {}})
    writer = BackupWriter(tmp_path / "old.zip")
    number = writer.add_study(copy)
    writer.finish()
    reader = BackupReader(tmp_path / "old.zip")
    found = reader.read_study(number)
    reader.close()
    assert (found.rows["slots"][2]["state"], found.rows["slots"][2]["waiting_reason"]) == (
        "waiting",
        "duplicate",
    )
    assert [trial["user_attrs"] for trial in found.trials] == [{}, {"duplicate_of": 0}]
    before = found.digests()
    bring_up(found)
    assert found.digests() == before, "rows of today stay as they are"
