"""Whatever a file, a name or an address holds, it is understood or refused in words."""

from __future__ import annotations

import ast
import io
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

import dlnn_search
from dlnn_search.cli.options import limit_hours, limit_moment, limit_seconds, parse_duration
from dlnn_search.config import Config, read_config
from dlnn_search.data.sources import import_clocks
from dlnn_search.errors import DataError, StorageError, StudyError, TrainingError, UsageError
from dlnn_search.machine import Gpu, choose_gpus
from dlnn_search.secret import hidden, remember, taken_off_command_line
from dlnn_search.storage.database import database_url, shown
from dlnn_search.study import NAME_PATTERN
from dlnn_search.study.finding import built_in_studies, load_study
from dlnn_search.study.named_configs import NAMED, find_config
from dlnn_search.training.checkpoint import Checkpoint, State

#: The folder is a test's, the examples share it.
many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["../../etc/passwd", "rendered", "Own", 10**400, -1, 1e308, "__class__"])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


class Bomb:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('exploded', 'w')",))


# Configs ------------------------------------------------------------------------------------


@many
@given(raw=st.binary(max_size=2_000) | st.text().map(str.encode))
@example(raw=b"[" * 100_000)
@example(raw=b'{"a":' * 50_000)
@example(raw=b"9" * 10_000)
@example(raw=b'"\\ud800"')
@example(raw=pickle.dumps(Bomb()))
def test_a_file_of_any_bytes_is_a_config_or_told_to_be_none(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(UsageError):
        read_config(path)


def places(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    pairs = (
        part.items()
        if isinstance(part, dict)
        else enumerate(part)
        if isinstance(part, list)
        else ()
    )
    for key, value in pairs:
        found += places(value, (*path, key))
    return found


@many
@given(name=st.sampled_from(sorted(NAMED)), data=st.data())
def test_a_config_with_anything_in_any_place_is_read_the_same_again_or_refused(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    whole = json.loads(NAMED[name]().model_dump_json())
    *way, last = data.draw(st.sampled_from(places(whole)))
    part = whole
    for key in way:
        part = part[key]
    part[last] = data.draw(anything)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    try:
        config = read_config(path)
    except UsageError as error:
        assert "Traceback" not in str(error)
        return
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_an_endless_file_is_refused_unread() -> None:
    with pytest.raises(UsageError, match="more than"):
        read_config(Path("/dev/zero"))
    with pytest.raises(UsageError, match="no study file"):
        load_study("/dev/zero.py")


@many
@given(name=st.text(max_size=60))
@example(name="a" * 5_000)
@example(name="\0")
@example(name="../" * 1_000)
def test_any_text_names_a_config_or_none(name: str, tmp_path: Path) -> None:
    try:
        find_config(str(tmp_path) + "/" + name)
    except UsageError:
        return
    raise AssertionError("an empty folder holds no config")


# Names --------------------------------------------------------------------------------------


@many
@given(name=st.text(max_size=40) | st.text(alphabet="./\\-_a~\0", max_size=40))
@example(name="a" * 5_000)
@example(name="../secret")
@example(name="-quick")
def test_any_text_is_a_studys_name_or_refused_without_looking_for_a_file(name: str) -> None:
    if name.removesuffix("-quick") in built_in_studies():
        return
    for text in (name, name + "/nowhere.py", name + "nowhere-at-all.py"):
        with pytest.raises((UsageError, StudyError)):
            load_study(text)


@many
@given(name=st.text(max_size=60) | st.text(alphabet="./\\-_aZ0~\0\n", max_size=60))
@example(name="..")
@example(name="a/../../b")
@example(name="a\n")
def test_a_name_that_a_study_may_have_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    if NAME_PATTERN.fullmatch(name):
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert len(name) <= 128  # as wide as the database's column


# Addresses ----------------------------------------------------------------------------------

part_of_url = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@many
@given(text=st.text(max_size=80) | part_of_url.map("postgresql://{}".format))
@example(text="sqlite:///" + "a" * 5_000)
@example(text="sqlite:///\0")
@example(text="postgresql://[::1/n")
@example(text="postgresql://h:99999999999/n")
@example(text="postgresql://h/n?host=a&host=b")
@example(text="sqlite:///x?mode=ro&uri=true")
def test_any_text_is_a_databases_address_or_refused(text: str) -> None:
    try:
        url = database_url(text or "x")
    except UsageError:
        return
    assert sa.make_url(url).get_backend_name() in ("sqlite", "postgresql")
    assert database_url(url) == url
    shown(url)


@many
@given(user=part_of_url, password=st.text(st.characters(codec="ascii"), min_size=6, max_size=20))
@example(user="me", password="a@b:c/d%{x}?#")
def test_an_address_is_shown_without_its_password_wherever_that_stands(
    user: str, password: str
) -> None:
    secret = f"pw-{password}"
    plain = sa.URL.create("postgresql", user, host="h", database="n")
    for url in (plain.set(password=secret), plain.set(query={"password": secret, "port": "1"})):
        text = url.render_as_string(hide_password=False)
        assert secret not in shown(database_url(text))
        assert sa.make_url(text).password in (secret, None)
        environment: dict[str, str] = {}
        for words in (["x", "--storage", text], ["x", f"--storage={text}", "y"]):
            cleaned = taken_off_command_line(words, environment)
            assert cleaned is not None
            assert len(cleaned) == len(words)
            assert environment["DLNN_SEARCH_STORAGE_PASSWORD"] == secret
            (address,) = [word for word in cleaned if "postgresql:" in word]
            parsed = sa.make_url(address.removeprefix("--storage="))
            assert (parsed.host, parsed.username, parsed.database) == ("h", user, "n")
            assert parsed.password is None and "password" not in parsed.query


@many
@given(secret=part_of_url, before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_known_secret_is_hidden_in_any_text(secret: str, before: str, after: str) -> None:
    remember(secret)
    told = hidden(f"{before} {secret} {after}")
    if not secret.isspace() and secret not in "***":
        assert f" {secret} " not in told


# Times --------------------------------------------------------------------------------------


@many
@given(text=st.text(max_size=30) | st.text(alphabet="0123456789.smhd inf", max_size=400))
@example(text="9" * 400 + "d")
@example(text="0." + "0" * 400 + "1s")
@example(text="٣h")
def test_any_text_is_a_time_that_ends_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except UsageError:
        return
    assert math.isfinite(seconds) and seconds > 0


@many
@given(text=st.text(max_size=30) | st.floats().map(str) | st.text(alphabet="0123456789.ehm-:T+ "))
@example(text="1e308")
@example(text="nan")
@example(text="9999-12-31T23:59:59")
@example(text="0001-01-01")
def test_any_text_is_a_limit_or_refused(text: str) -> None:
    for read in (limit_hours, limit_seconds, limit_moment):
        try:
            limit = read(text)
        except UsageError:
            continue
        unlimited = text.strip().lower() == "none"
        assert limit is not None and limit > 0 and math.isinf(limit) == unlimited


@given(hours=st.integers(0, 500), minutes=st.integers(1, 59))
def test_a_time_is_read_as_it_is_written(hours: int, minutes: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m") == hours * 3_600 + minutes * 60


# GPUs ---------------------------------------------------------------------------------------


@many
@given(
    text=st.text(max_size=30) | st.text(alphabet="0123456789, alnoe", max_size=12),
    n_gpus=st.integers(0, 4),
)
@example(text="9" * 5_000, n_gpus=2)
@example(text="0,,1", n_gpus=2)
@example(text="0,0", n_gpus=2)
@example(text="-1", n_gpus=2)
@example(text="²", n_gpus=2)
@example(text="٠,١", n_gpus=2)
def test_any_text_names_gpus_that_are_there_or_is_refused(text: str, n_gpus: int) -> None:
    found = [Gpu(number, f"GPU-{number}", "made up", 16_384) for number in range(n_gpus)]
    try:
        chosen = choose_gpus(text, found)
    except UsageError:
        return
    assert len({gpu.index for gpu in chosen}) == len(chosen)
    assert set(chosen) <= set(found)
    if text.strip().lower() not in ("all", "none"):
        assert [gpu.index for gpu in chosen] == [int(number) for number in text.split(",")]


# Arrays -------------------------------------------------------------------------------------


def npy_bytes(array: np.ndarray[Any, Any], *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def header(text: str) -> bytes:
    raw = text.encode("latin1", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


LABELS = npy_bytes(np.zeros((720, 2), np.int64))
IMAGES = npy_bytes(np.zeros((720, 32, 32), np.uint8))
HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }"


@many
@given(
    raw=st.binary(max_size=400)
    | st.tuples(st.sampled_from([LABELS, IMAGES]), st.integers(0, 140), st.binary(max_size=6)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] + len(drawn[2]) :]
    )
    | st.text(max_size=200).map(lambda text: header(text))
)
@example(raw=npy_bytes(np.array([Bomb()], object), allow_pickle=True))
@example(raw=pickle.dumps(Bomb()))
@example(raw=header(HUGE % "10**18,"))
@example(raw=header(HUGE % "720000000000, 32, 32"))
@example(raw=header(HUGE % "-1, 32, 32"))
@example(raw=header(HUGE % ("9" * 5_000 + ",")))
@example(raw=header("(" * 5_000))
@example(raw=header("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (2,), }"))
@example(raw=b"PK\x03\x04")
@example(raw=b"PK\x05\x06" + bytes(18))
def test_no_file_becomes_clocks_but_by_its_form_and_none_is_run(
    raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    good = {"images": IMAGES, "labels": LABELS}
    for name in good:
        for kind, content in good.items():
            (tmp_path / f"{kind}.npy").write_bytes(raw if kind == name else content)
        try:
            done = import_clocks(
                tmp_path / "images.npy", tmp_path / "labels.npy", replace=True, on_progress=print
            )
        except DataError:
            assert not (tmp_path / "exploded").exists()
            continue
        assert done.n == 720 and done.edge == 32


def test_too_many_labels_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "labels.npy"
    text = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000, 2), }"
    with path.open("wb") as file:
        file.write(header(text))
        file.truncate(file.tell() + 16_000_000_000)  # sparse: nothing is on the disk
    (tmp_path / "images.npy").write_bytes(IMAGES)
    with pytest.raises(DataError, match="at most"):
        import_clocks(tmp_path / "images.npy", path)


# Checkpoints --------------------------------------------------------------------------------


def checkpoint_bytes(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def meta(**changed: Any) -> bytes:
    epoch = {"epoch": 1, "metrics": {"loss": 1.0}, "seconds": 1.0, "images_per_second": 2.0}
    whole = {"version": 1, "fingerprint": "f", "precision": "float32", "curve": [epoch], **changed}
    return npy_bytes(np.frombuffer(json.dumps(whole).encode(), np.uint8))


WEIGHTS = npy_bytes(np.zeros(3, np.float32))
GOOD = checkpoint_bytes(meta=meta(), last_0000=WEIGHTS, best_0000=WEIGHTS)


def load_checkpoint(raw: bytes, folder: Path) -> State | None:
    (folder / "last.npz").write_bytes(raw)
    return Checkpoint(folder, "f").load()


def test_the_checkpoint_that_these_tests_damage_is_read(tmp_path: Path) -> None:
    state = load_checkpoint(GOOD, tmp_path)
    assert state is not None and state.curve[0].metrics == {"loss": 1.0}


@many
@given(
    raw=st.binary(max_size=300)
    | st.tuples(st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=8)).map(
        lambda drawn: GOOD[: drawn[0]] + drawn[1] + GOOD[drawn[0] + len(drawn[1]) :]
    )
    | anything.map(lambda value: checkpoint_bytes(meta=meta(curve=value), last_0000=WEIGHTS))
    | anything.map(lambda value: checkpoint_bytes(meta=meta(curve=[{"epoch": value}])))
    | st.text(max_size=80).map(
        lambda text: checkpoint_bytes(meta=meta(), last_0=header(repr(text)))
    )
)
@example(raw=pickle.dumps(Bomb()))
@example(
    raw=checkpoint_bytes(
        meta=meta(), last_0=npy_bytes(np.array([Bomb()], object), allow_pickle=True)
    )
)
@example(raw=checkpoint_bytes(meta=meta(), last_0=header(HUGE % "10**15,")))
@example(raw=checkpoint_bytes(meta=meta(), last_0=header(HUGE % "1000000000000000,")))
@example(raw=checkpoint_bytes(meta=npy_bytes(np.frombuffer(b"[]", np.uint8))))
@example(raw=checkpoint_bytes(meta=b""))
def test_no_file_becomes_a_checkpoint_but_by_its_form_and_none_is_run(
    raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        state = load_checkpoint(raw, tmp_path)
    except (StorageError, TrainingError):
        assert not (tmp_path / "exploded").exists()
        return
    assert state is not None
    assert all(epoch.epoch > -math.inf for epoch in state.curve)


def test_a_checkpoint_that_would_swell_is_refused_unread(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.npy", meta())
        archive.writestr("last_0000.npy", npy_bytes(np.zeros(20_000_000, np.uint8)))
    with pytest.raises(StorageError, match="compressed"):
        load_checkpoint(file.getvalue(), tmp_path)


# The package itself -------------------------------------------------------------------------


def test_nothing_in_the_package_can_load_a_pickle() -> None:
    folder = Path(dlnn_search.__file__).parent
    n_loads = 0
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            assert not forbidden & {name.split(".")[0] for name in names}, path
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            if called == "np.load":
                n_loads += 1
                assert options.get("allow_pickle") == "False", f"{path}:{node.lineno}"
            if called.endswith(".load_model"):
                assert options.get("safe_mode") == "True", f"{path}:{node.lineno}"
    assert n_loads > 3


def test_an_archive_is_no_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.npy", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(50_000_000))
    (tmp_path / "labels.npy").write_bytes(LABELS)
    with pytest.raises(DataError, match="archive"):
        import_clocks(tmp_path / "images.npy", tmp_path / "labels.npy")
