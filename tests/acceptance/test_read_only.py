"""Commands that only read, in a folder where nothing can be written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlnn_search.cli.options import ONLY_READ

from .command_line import TIMEOUT_SECONDS, Done, Place, wait_for

#: Each command that only reads, with what follows its name; OUT is a folder that can be written.
COMMANDS = {
    "status": ["tiny", "--json"],
    "logs": ["tiny"],
    "trials": ["tiny"],
    "best": ["tiny"],
    "regions": ["tiny", "-o", "OUT/regions.html"],
    "ledger": [],
    "export": ["tiny", "-o", "OUT/best.json", "--model", "OUT/best.keras"],
    "importance": ["tiny"],
    "compare": ["tiny", "other", "-o", "OUT/compared.html"],
    "plots": ["tiny", "-o", "OUT/plots.html"],
    "storage info": [],
    "storage backup": ["--all", "-o", "OUT/backup.zip"],
    "storage sweep": [],
    "studies": [],
    "studies --all": [],
}
#: Root writes where nobody else may: for it the folder is mounted to read only.
MOUNTED = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'


class ReadOnly:
    """A searched folder that nothing can be written into."""

    def __init__(self, place: Place, out: Path) -> None:
        self.place = place
        self.out = out
        is_root = os.geteuid() == 0
        self.prefix = ["unshare", "-m", "sh", "-c", MOUNTED, str(place.folder)] if is_root else []
        # No cache can be written either.
        self.environment = {**place.environment, "DLNN_SEARCH_CACHE": str(place.folder / "cache")}

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, *self.place.command(*arguments)]

    def run(self, *arguments: str) -> Done:
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.place.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def read_only(searched: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadOnly]:
    place = searched.copy_to(tmp_path_factory.mktemp("read-only") / "work")
    out = tmp_path_factory.mktemp("out")
    shutil.copytree(searched.data / "checkpoints", place.data / "checkpoints", dirs_exist_ok=True)
    place.succeed("start", "tiny.py", "--workers", 2, "--trials", 10)  # as `importance` needs
    place.succeed("storage", "backup", "tiny", "-o", out / "tiny.zip")
    place.succeed("storage", "restore", out / "tiny.zip", "--as", "other")
    folders = [path for path in place.folder.rglob("*") if path.is_dir()]
    if os.geteuid() == 0:
        probe = subprocess.run(["unshare", "-m", "true"], capture_output=True)
        if probe.returncode:
            pytest.skip("needs a file system of its own, to be mounted read-only")
    else:
        for path in [place.folder, *place.folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    yield ReadOnly(place, out)
    for path in [place.folder, *folders]:
        path.chmod(0o755)


def test_every_command_that_only_reads_is_tried_here() -> None:
    assert set(COMMANDS) >= ONLY_READ


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_only_reads_works_where_nothing_can_be_written(
    read_only: ReadOnly, command: str
) -> None:
    arguments = [part.replace("OUT", str(read_only.out)) for part in COMMANDS[command]]
    done = read_only.run(*command.split(), *arguments)
    assert done.code == 0, done.both
    told = [
        line for line in done.err.splitlines() if "The figures are not in the dashboard" not in line
    ]
    assert not told
    for argument in arguments:
        if argument.startswith(str(read_only.out)):
            assert Path(argument).stat().st_size


def test_doctor_reads_the_database_and_says_that_the_folder_cannot_be_written(
    read_only: ReadOnly,
) -> None:
    said = read_only.run("doctor").both
    assert re.search(r"ok +database: .*2 studies", said), said
    assert re.search(r"note +disk, studies: \S+ is read-only\..* status, trials", said), said
    assert "LACKS  disk" not in said
    assert "bug of dlnn-search" not in said


def test_a_dashboard_to_look_at_is_served(read_only: ReadOnly) -> None:
    with subprocess.Popen(
        read_only.command("dashboard", "--read-only", "--port", "0"),
        cwd=read_only.place.folder,
        env=read_only.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said = process.stdout
            assert said is not None
            address = wait_for("its address", lambda: re.search(r"http://\S+/", said.readline()))
            with urllib.request.urlopen(f"{address[0]}api/studies") as answer:
                assert b'"tiny"' in answer.read()
        finally:
            process.kill()


def test_a_command_that_writes_says_what_it_could_not(read_only: ReadOnly) -> None:
    done = read_only.run("pause", "tiny")
    assert done.code == 5
    assert "cannot be opened for writing" in done.err
