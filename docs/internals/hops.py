"""Count the files on the way of one trial, from the start command to the settled row.

A tiny study of one trial is searched as a user does it, `dlnn-search start shades.py --workers 1`,
with a profile function (`sys.setprofile`) in both processes: the start, until it makes its worker,
and the worker, until the trial's row is settled. Counted are files of the package: those on the
stack at that moment, those entered until then, and those in which a function has the study, the
slot or the trial, with the calls (pairs of functions) of these. Run it from the checkout:

    python docs/internals/hops.py

After a move, name the functions where they are now; `--help` lists them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = str(ROOT / "dlnn_search")
STUDY = ROOT / "tests" / "fixtures" / "shades.py"


def main() -> None:
    """Search, and print what was come by."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for option, function, words in (
        ("--start", "commands/start.py:start", "the start command's function"),
        ("--worker", "worker/worker.py:run_worker", "the worker command's"),
        ("--claim", "worker/held_trial.py:claim", "which claims a slot"),
        ("--settle", "storage/slots.py:settle_held", "which writes the outcome"),
    ):
        parser.add_argument(option, default=function, metavar="FILE:NAME", help=words)
    parser.add_argument(
        "--follow",
        default="Study,Slot,Trial,HeldTrial",
        help="classes: of a function that has one of these, or what holds one, the calls count",
    )
    parser.add_argument("--files", action="store_true", help="list the files")
    options = vars(parser.parse_args())
    list_them = options.pop("files")
    with tempfile.TemporaryDirectory() as scratch:
        parts = _search(Path(scratch), options)
    for title, files in parts.items():
        folders = Counter(file.rpartition("/")[0] or "." for file in files)
        print(f"{title}: {len(files)} files")
        print("   ", ", ".join(f"{folder} {n}" for folder, n in sorted(folders.items())))
        if list_them:
            print("\n".join(f"        {file}" for file in files))


def _search(folder: Path, wanted: dict[str, str]) -> dict[str, list[str]]:
    """Return the files of each part of the way, by what the part is."""
    study = shutil.copy(STUDY, folder)
    # Python imports it in every process before anything else.
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        f"import hops\nhops.watch({str(folder)!r}, {json.dumps(wanted)})\n"
    )
    environment = {
        **os.environ,
        "DLNN_SEARCH_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
    }
    # What a start asks once is asked before: the way is the usual one.
    command = [sys.executable, "-m", "dlnn_search", "start", study, "--trials", "1", "--workers"]
    for n_workers in ("0", "1"):
        done = subprocess.run(
            [*command, n_workers], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
    parts = {}
    for part in ("start", "worker"):
        path = folder / f"{part}.json"
        if not path.exists():
            sys.exit(f"The {part} did not come by the functions {wanted}: name them as they are.")
        parts[part] = json.loads(path.read_text())
    return {
        "On the stack where the start makes its worker": parts["start"]["stack"],
        "On the stack at the settled row": parts["worker"]["stack"],
        "On either stack": _both(parts, "stack"),
        "Entered by the start": parts["start"]["entered"],
        "Entered by the worker before the settled row": parts["worker"]["entered"],
        "Entered by either": _both(parts, "entered"),
        "Entered from the claim to the settled row": parts["worker"]["claimed"],
        f"From start to the settled row, {len(_both(parts, 'calls'))} calls with "
        f"{wanted['follow']}": _both(parts, "followed"),
        f"From the claim to the settled row, {len(parts['worker']['claimed_calls'])} calls with "
        f"{wanted['follow']}": parts["worker"]["claimed_followed"],
    }


def _both(parts: dict[str, dict[str, list[Any]]], what: str) -> list[str]:
    return sorted({str(each) for found in parts.values() for each in found[what]})


def watch(folder: str, wanted: dict[str, str]) -> None:
    """Let this process write what it came by into the folder, if it is one of the two."""
    watched = _Watched(Path(folder), wanted)
    threading.setprofile(watched.on_event)
    sys.setprofile(watched.on_event)


class _Way:
    """What was come by: files, and calls that have a part of what is followed."""

    def __init__(self) -> None:
        self.entered: set[str] = set()
        self.followed: set[str] = set()
        self.calls: set[tuple[str, str]] = set()


class _Watched:
    def __init__(self, folder: Path, wanted: dict[str, str]) -> None:
        self._folder = folder
        self._wanted = wanted
        self._follow = set(wanted["follow"].split(","))
        self._part: str | None = None
        self._way, self._claimed = _Way(), _Way()

    def on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_qualname == "Popen.__init__" and self._part == "start":
            if "worker" in frame.f_locals["args"]:
                self._write(frame)
            return
        if not _is_ours(frame):
            return
        name = _name(frame)
        for part in ("start", "worker"):
            if name == self._wanted[part] and self._part is None:
                self._part = part
        if self._part is None:
            return
        if name == self._wanted["claim"]:
            self._claimed = _Way()
        for way in (self._way, self._claimed):
            way.entered.add(_file(frame))
        if any(map(self._is_followed, _given(frame))):
            caller = frame.f_back
            while caller is not None and not _is_ours(caller):
                caller = caller.f_back
            for way in (self._way, self._claimed):
                way.followed.add(_file(frame))
                way.calls.add(("" if caller is None else _name(caller), name))
        if name == self._wanted["settle"] and self._part == "worker":
            self._write(frame)

    def _is_followed(self, value: Any) -> bool:
        if type(value).__name__ in self._follow:
            return True
        if not type(value).__module__.startswith("dlnn_search"):
            return False
        return any(
            type(part).__name__ in self._follow for part in getattr(value, "__dict__", {}).values()
        )

    def _write(self, frame: FrameType) -> None:
        path = self._folder / f"{self._part}.json"
        self._part = None
        if path.exists():
            return
        stack: set[str] = set()
        at: FrameType | None = frame
        while at is not None:
            stack |= {_file(at)} if _is_ours(at) else set()
            at = at.f_back
        found: dict[str, set[Any]] = {
            "stack": stack,
            "entered": self._way.entered,
            "followed": self._way.followed,
            "calls": self._way.calls,
            "claimed": self._claimed.entered,
            "claimed_followed": self._claimed.followed,
            "claimed_calls": self._claimed.calls,
        }
        path.write_text(json.dumps({what: sorted(them) for what, them in found.items()}))


def _is_ours(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_filename.startswith(PACKAGE) and code.co_qualname != "<module>"


def _given(frame: FrameType) -> Iterator[Any]:
    """Yield what a function has when it is called: its arguments, and what it encloses."""
    code, local = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return (local[name] for name in (*names, *code.co_freevars) if name in local)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.removeprefix(PACKAGE + os.sep)


def _name(frame: FrameType) -> str:
    return f"{_file(frame)}:{frame.f_code.co_qualname}"


if __name__ == "__main__":
    main()
