"""A stand-in for the engine: runs the services of docker-compose.yml, each as the file says.

Where no container engine runs, a network and a file system of its own (namespaces, and an overlay
of this machine's) do for what the file decides: commands, environment, secrets, users, mounts,
health checks, signals. Images, limits of memory and GPUs are not part of it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "docker-compose.yml"
#: As in the Dockerfile, and as in PostgreSQL's image.
PROGRAM_USER, DATABASE_USER = 10_001, 999
_OF_IMAGE = re.compile(r"^ {4}(DLNN_SEARCH_\w+)=(\S+)", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^{}]*))?\}")


def read_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file's content with its variables replaced, as `docker compose config` does."""

    def replaced(match: re.Match[str]) -> str:
        found = variables.get(match[1]) or match[2]
        assert found is not None, f"{match[1]} has no default"
        return found

    def walked(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: walked(value) for key, value in part.items()}
        if isinstance(part, list):
            return [walked(value) for value in part]
        return _VARIABLE.sub(replaced, part) if isinstance(part, str) else part

    content: dict[str, Any] = walked(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    return content


def words_of(command: str | list[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else command


@dataclass
class Machine:
    """The one machine on which all services run, reached through the holder of its namespaces."""

    compose: dict[str, Any]
    folder: Path
    holder: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)
    _begun: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "m"

    def inside(
        self, words: list[str], user: int | None, environment: Mapping[str, str]
    ) -> list[str]:
        as_user = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}"]
        as_user += ["--clear-groups", "--no-new-privs"] if as_user else []
        return [
            *("nsenter", f"--target={self.holder.pid}", "--mount", "--net"),
            *("chroot", str(self.root), *as_user, "env", "--chdir=/search", "-i"),
            *(f"{name}={text}" for name, text in environment.items()),
            *words,
        ]

    def begin(self, service: str) -> subprocess.Popen[bytes]:
        """Start a service in the background; what it says goes to a file named as it."""
        with (self.folder / f"{service}.log").open("ab") as log:
            process = subprocess.Popen(
                self.inside(self._words(service), self._user(service), self._variables(service)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._begun.append(process)
        return process

    def end(self) -> None:
        """End whatever still runs, and the namespaces with it."""
        for process in self._begun:
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT)  # PostgreSQL's "at once"
        for process in self._begun:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
        self.holder.kill()
        self.holder.wait()

    def run(self, words: list[str], user: int | None = None, **variables: str) -> str:
        done = subprocess.run(
            self.inside(words, user, {"PATH": os.environ["PATH"], **variables}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def is_healthy(self, service: str) -> bool:
        test = self.compose["services"][service]["healthcheck"]["test"]
        assert test[0] == "CMD"
        done = subprocess.run(
            self.inside(test[1:], self._user(service), self._variables(service)),
            capture_output=True,
            timeout=60,
        )
        return done.returncode == 0

    def said(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(encoding="utf-8", errors="replace")

    def _words(self, service: str) -> list[str]:
        words = words_of(self.compose["services"][service]["command"])
        # The entry point is the image's: its Dockerfile's, or PostgreSQL's, which runs the words.
        return words if service == "database" else ["dlnn-search", *words]

    def _user(self, service: str) -> int:
        return DATABASE_USER if service == "database" else PROGRAM_USER

    def _variables(self, service: str) -> dict[str, str]:
        return {
            **self.environment,
            **self.compose["services"][service].get("environment", {}),
        }


@contextmanager
def machine(compose: dict[str, Any], folder: Path, binaries: Path) -> Iterator[Machine]:
    """Make the machine: mounts, names, users, secrets, and the database's first start.

    Args:
        compose: As `read_compose` returns it.
        folder: Empty, for the overlay and the logs.
        binaries: Where PostgreSQL's programs are.
    """
    holder = subprocess.Popen(
        ["unshare", "--mount", "--net", "--propagation=private", "sleep", "infinity"]
    )
    made = Machine(compose, folder, holder)
    program = folder / "bin"
    program.mkdir()
    (program / "dlnn-search").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m dlnn_search "$@"\n', encoding="utf-8"
    )
    (program / "dlnn-search").chmod(0o755)
    path = f"{program}:{Path(sys.executable).parent}:{binaries}:{os.environ['PATH']}"
    made.environment.update(_OF_IMAGE.findall((REPOSITORY / "Dockerfile").read_text("utf-8")))
    made.environment.update(PATH=path, PYTHONPATH=str(REPOSITORY), PYTHONDONTWRITEBYTECODE="1")
    try:
        _mount(made)
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def _mount(made: Machine) -> None:
    folder, compose = made.folder, made.compose
    binds = []
    for name in {name for service in compose["services"].values() for name in service["secrets"]}:
        source = FILE.parent / compose["secrets"][name]["file"]
        binds.append((source, f"/run/secrets/{name}"))
    for volume in compose["services"]["database"]["volumes"]:
        source, _, target = volume.removesuffix(":ro").partition(":")
        if source.startswith("."):
            binds.append((FILE.parent / source, target))
    lines = [
        "set -eu",
        # Programs that only root reaches, such as a Python in its home, are for all here.
        f"mount -t tmpfs tmpfs {folder}",
        f"mkdir {folder}/u {folder}/w {folder}/m",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={folder}/u,workdir={folder}/w {folder}/m",
        f"cd {folder}/m",
        "chmod 755 root; chmod 1777 tmp",
        "mount --rbind /proc proc; mount --rbind /dev dev",
        "mount -t tmpfs tmpfs run; mkdir run/secrets",
        "ip link set lo up",
        "echo '127.0.0.1 localhost database' > etc/hosts",
        f"echo 'dlnn:x:{PROGRAM_USER}:{PROGRAM_USER}::/tmp:/bin/sh' >> etc/passwd",
        f"echo 'database:x:{DATABASE_USER}:{DATABASE_USER}::/tmp:/bin/sh' >> etc/passwd",
        f"install -d -o {PROGRAM_USER} -g {PROGRAM_USER} files cache",
        "install -d search/studies",
        f"install -d -m 700 -o {DATABASE_USER} -g {DATABASE_USER} var/lib/postgresql",
        f"install -d -o {DATABASE_USER} run/postgresql",
    ]
    for source, target in binds:
        inside = shlex.quote(target.lstrip("/"))
        lines += [f"mkdir -p $(dirname {inside})", f"cp -r {shlex.quote(str(source))} {inside}"]
    script = "\n".join(lines)
    enter = ["nsenter", f"--target={made.holder.pid}", "--mount", "--net", "sh", "-c", script]
    deadline = time.monotonic() + 10
    while (
        Path(f"/proc/{made.holder.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
    ):
        assert time.monotonic() < deadline, "no namespaces to be had"
        time.sleep(0.02)
    done = subprocess.run(enter, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Send a signal to what `nsenter` became, as `docker compose stop` does; return the code."""
    process.send_signal(number)
    return process.wait(timeout=300)
