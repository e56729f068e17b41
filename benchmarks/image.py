"""Do the image's steps in a chroot, where no engine runs: python benchmarks/image.py BASE OUT.

BASE is a root folder with Python 3 in the place of the Dockerfile's base image, for example
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates trixie BASE
Every RUN line of the Dockerfile is run in a chroot of its stage, every COPY done, and what comes
out in OUT is measured and started as the image would start it. Needs root, for the chroot.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
#: What a step may know of this machine: how it reaches the packages' index.
NETWORK = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions in order, their continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    joined = re.sub(r"\\\n", " ", text)
    lines = [line.strip() for line in joined.splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in lines]


class Stage:
    """One stage: a root folder, and what its later steps run with."""

    def __init__(self, base: Path, root: Path, variant: str) -> None:
        subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", str(root)], check=True)
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", root / "etc" / name)
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        shutil.copy(certificates, root / str(certificates).lstrip("/"))
        self.root, self.folder, self.user = root, "/", "0:0"
        self.entry: list[str] = []
        self.variables = {"VARIANT": variant, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin"}

    def run(self, words: list[str], **variables: str) -> str:
        user, group = self.user.split(":")
        known = {name: os.environ[name] for name in NETWORK if name in os.environ}
        trusted = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
        done = subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-euc"),
                'mount --rbind /dev "$0/dev"; mount -t proc proc "$0/proc"; exec chroot "$@"',
                *(str(self.root), f"--userspec={user}:{group}", str(self.root)),
                *("env", "-i", f"--chdir={self.folder}"),
                *(
                    f"{k}={v}"
                    for k, v in {**trusted, **known, **self.variables, **variables}.items()
                ),
                *words,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{words}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def copy(self, sources: list[str], target: str, source_root: Path) -> None:
        into = self.root / os.path.join(self.folder, target).lstrip("/")
        for pattern in sources:
            for found in glob.glob(str(source_root / pattern.lstrip("/"))):
                path = Path(found)
                if path.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(path, into, dirs_exist_ok=True, symlinks=True, ignore=ignored)
                else:
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, into)


def build(base: Path, out: Path, variant: str) -> Stage:
    """Do every instruction; return the last stage."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions((REPOSITORY / "Dockerfile").read_text(encoding="utf-8")):
        began = time.monotonic()
        if word == "FROM":
            name = rest.split(" AS ")[1] if " AS " in rest else "image"
            root = out / name
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            stage = stages[name] = Stage(base, root, variant)
        if stage is None or word in ("ARG", "LABEL", "STOPSIGNAL", "CMD", "FROM"):
            continue
        if word == "ENV":
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                stage.variables[key] = value.replace("$PATH", stage.variables["PATH"])
        elif word == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = rest
        elif word == "ENTRYPOINT":
            stage.entry = json.loads(rest)
        elif word == "RUN":
            stage.run(["sh", "-c", rest])
        elif word == "COPY":
            *sources, target = rest.split()
            origin = REPOSITORY
            if sources[0].startswith("--from="):
                origin = stages[sources.pop(0).partition("=")[2]].root
            stage.copy(sources, target, origin)
        else:
            raise SystemExit(f"Unknown instruction: {word} {rest}")
        print(f"{time.monotonic() - began:7.1f} s  {word} {rest[:90]}", flush=True)
    assert stage is not None
    return stage


def megabytes(path: Path) -> float:
    """Return what a folder takes on the disk, in millions of bytes."""
    told = subprocess.run(["du", "-sb", str(path)], capture_output=True, text=True, check=True)
    return int(told.stdout.split()[0]) / 1e6


def main() -> None:
    """Build, measure, start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    image = build(options.base, options.out, options.variant)
    base, whole = megabytes(options.base), megabytes(image.root)
    program = megabytes(image.root / "opt/dlnn-search")
    print(f"base {base:,.0f} MB, image {whole:,.0f} MB, of it program and libraries {program:,.0f}")
    print(image.run(["id"]).strip())
    print(image.run([*image.entry, "--version"]).strip())
    print(image.run([*image.entry, "doctor"], HOME="/tmp").strip())
    owned = image.run(
        ["sh", "-c", "find /opt/dlnn-search -writable | head -n 3; ls -ld /files /cache"]
    )
    print(owned.strip())
    quick = ["start", "task3-clock", "--quick", "--workers", "1", "--trials", "1"]
    print(image.run([*image.entry, *quick], HOME="/tmp").strip())


if __name__ == "__main__":
    main()
