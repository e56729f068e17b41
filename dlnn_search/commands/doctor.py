"""The use case `doctor`: what this machine offers a search, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from dlnn_search._version import __version__
from dlnn_search.data.catalog import catalog
from dlnn_search.data.prepared import prepared_root
from dlnn_search.errors import DlnnSearchError
from dlnn_search.machine import find_gpus, usable_cores
from dlnn_search.storage.database import database_url, files_folder, open_database, shown
from dlnn_search.storage.database.sqlite import file_of
from dlnn_search.storage.halves import lost_words
from dlnn_search.storage.studies import all_studies

GIGABYTE = 1e9
#: A worker on clocks holds about this much, shared pages included (measured: 1.3 GB at 80 px).
WORKER_GIGABYTES = 1.5
#: Checkpoints, prepared clocks and logs of a long study.
WANTED_DISK_GIGABYTES = 5.0
#: Importing TensorFlow takes 3 to 20 s; a machine where it takes longer has a broken GPU driver.
TENSORFLOW_SECONDS = 120

_FIND_DEVICES = """
import json, tensorflow as tf
print(json.dumps({
    "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
    "cuda": tf.test.is_built_with_cuda(),
}))
"""

#: What a folder that cannot be written is still good for.
_READ_ONLY = {
    "studies": (
        "Commands that only read work: status, trials, best, and with -o elsewhere export and "
        "plots. 'start' and 'worker' do not: name a database in a writable folder with --storage."
    ),
    "data": (
        "Data that is prepared there can be used. New data cannot be downloaded or rendered: set "
        "DLNN_SEARCH_CACHE to a writable folder."
    ),
}

Verdict = Literal["good", "note", "lacking"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `lacking` keeps a search from working."""

    verdict: Verdict
    about: str
    words: str


def examine(storage: str | None) -> Iterator[Finding]:
    """Look at cores, memory, disk, GPUs, precision, data and database, one after the other."""
    yield _versions()
    yield _cores()
    yield _memory()
    yield from _disks(storage)
    yield from _tensorflow()
    yield _precision()
    yield from _data()
    yield from _database(storage)


def _versions() -> Finding:
    # TensorFlow without CUDA's code comes under another name.
    installed = importlib.metadata.packages_distributions().get("tensorflow", ["tensorflow"])
    tensorflow = min(installed, key=len)
    names = (tensorflow, "keras", "optuna", "optuna-dashboard", "sqlalchemy")
    words = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return Finding("good", "versions", f"dlnn-search {__version__}, {words}; {system}")


def _cores() -> Finding:
    cores = usable_cores()
    if cores == 1:
        return Finding("note", "cores", "1 core: use --workers 1")
    return Finding("good", "cores", f"{cores} cores: --workers {min(cores, 4)} keeps them busy")


def _memory() -> Finding:
    free = psutil.virtual_memory().available / GIGABYTE
    n_workers = int(free / WORKER_GIGABYTES)
    words = f"{free:.1f} GB free: room for about {n_workers} workers on clocks of 150 px"
    if not n_workers:
        return Finding("lacking", "memory", f"{words}. Close other programs or use smaller images.")
    return Finding("good", "memory", words)


def _disks(storage: str | None) -> Iterator[Finding]:
    try:
        folders = {"studies": files_folder(database_url(storage)), "data": prepared_root()}
    except DlnnSearchError:
        folders = {"data": prepared_root()}  # what is wrong with the address is said below
    for purpose, folder in folders.items():
        existing = folder
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free / GIGABYTE
        words = f"{free:.1f} GB free in {folder}"
        # As the user that this process acts for, where the system can say so.
        by_effective = os.access in os.supports_effective_ids
        if not os.access(existing, os.W_OK, effective_ids=by_effective):
            yield Finding(
                "note", f"disk, {purpose}", f"{existing} is read-only. {_READ_ONLY[purpose]}"
            )
        elif free < WANTED_DISK_GIGABYTES:
            yield Finding("note", f"disk, {purpose}", f"{words}: a long study may need more")
        else:
            yield Finding("good", f"disk, {purpose}", words)


def _tensorflow() -> Iterator[Finding]:
    """Ask TensorFlow in a process of its own: it may hang or crash on a broken driver."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        said = subprocess.run(
            [sys.executable, "-c", _FIND_DEVICES],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TENSORFLOW_SECONDS,
            check=True,
        )
        devices = json.loads(said.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield Finding("lacking", "TensorFlow", f"did not start within {TENSORFLOW_SECONDS} s")
        return
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        tail = getattr(error, "stderr", "") or str(error)
        yield Finding("lacking", "TensorFlow", f"cannot be used: {tail.strip().splitlines()[-1]}")
        return
    present = [gpu.words for gpu in find_gpus()]
    if devices["gpus"]:
        yield Finding("good", "GPUs", f"{len(devices['gpus'])}: {', '.join(present) or 'found'}")
    elif present:
        yield Finding(
            "note",
            "GPUs",
            f"{', '.join(present)} is here, but TensorFlow cannot use it: "
            "pip install '.[gpu]' in dlnn-search's folder",
        )
    else:
        yield Finding("note", "GPUs", "none: trials run on the processor")


def _precision() -> Finding:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return Finding("note", "precision", "'auto' measures bfloat16 when a model is trained")
    if "amx_bf16" in flags or "avx512_bf16" in flags:
        return Finding("good", "precision", "the processor computes bfloat16 by itself")
    return Finding("note", "precision", "no bfloat16 in the processor: 'auto' means float32 on it")


def _data() -> Iterator[Finding]:
    try:
        entries = catalog()
    except DlnnSearchError as error:
        yield Finding("lacking", "data", str(error))
        return
    states: dict[str, list[str]] = {}
    for entry in entries:
        if entry.state != "to import":
            variant = f" ({entry.variant})" if entry.variant else ""
            states.setdefault(entry.state, []).append(f"{entry.name}{variant}")
    for state, names in states.items():
        verdict: Verdict = "note" if state == "to download" else "good"
        yield Finding(verdict, "data", f"{state}: {', '.join(dict.fromkeys(names))}")


def _database(storage: str | None) -> Iterator[Finding]:
    if importlib.util.find_spec("psycopg") is None:
        yield Finding(
            "note", "PostgreSQL", "no driver: pip install '.[postgres]' in dlnn-search's folder"
        )
    try:
        url = database_url(storage)
        file = file_of(url)
        if file is not None and not file.exists():
            yield Finding("good", "database", f"{shown(url)} will be made by the first start")
            return
        database = open_database(url, create=False, read_only=True)
    except DlnnSearchError as error:
        yield Finding("lacking", "database", str(error))
        return
    with database:
        studies = all_studies(database)
        yield Finding("good", "database", f"{shown(url)}: {len(studies)} studies")
        for study in studies:
            lost = lost_words(database, study.id, study.name)
            if lost is not None:
                yield Finding("lacking", "database", lost)
