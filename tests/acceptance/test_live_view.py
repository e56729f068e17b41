"""What a search shows while it runs: in a terminal, and in a pipe or a file."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path

import pytest

from .command_line import SLOW, TIMEOUT_SECONDS, Place, wait_for

COLUMNS, LINES = 100, 30
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LINE = re.compile(r"\[\d+ s\] \d of 2 trials(, .+)? \| (no result yet|best .+) \| .+")


def in_a_terminal(place: Place, *arguments: object, until: str | None = None) -> tuple[int, str]:
    """Run a command in a terminal of its own; return its exit code and all that it wrote.

    Ctrl-C is typed once it has written `until`.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # Linux's way to say that nobody holds the other end
                return
            if not piece:
                return
            pieces.append(piece)

    def written() -> str:
        return b"".join(pieces).decode(errors="replace")

    environment = {**place.environment, "TERM": "xterm-256color"}
    try:
        with subprocess.Popen(
            place.command(*arguments),
            cwd=place.folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            reader = threading.Thread(target=read)
            reader.start()
            if until is not None:
                wait_for(until, lambda: until in ESCAPE.sub("", written()))
                process.send_signal(signal.SIGINT)
            code = process.wait(timeout=TIMEOUT_SECONDS)
        reader.join()
    finally:
        os.close(ours)
    return code, written()


@pytest.fixture(scope="module")
def terminal(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> tuple[int, str]:
    place = Place(tmp_path_factory.mktemp("terminal"), environment)
    study = place.write_study(**SLOW)
    return in_a_terminal(place, "start", study, "--workers", 2, "--trials", 3)


def test_a_terminal_shows_workers_epochs_metric_and_budget(terminal: tuple[int, str]) -> None:
    code, written = terminal
    assert code == 0, written
    seen = ESCAPE.sub("", written)
    for part in (
        "worker",
        "trial",
        "epoch",
        "common sense error",
        "img/s",
        "3 of 3 trials",
        "best",
    ):
        assert part in seen
    assert re.search(r"[1-8]/8", seen)
    assert "All 3 trials of tiny are done" in seen


def test_a_terminal_is_redrawn_in_place_and_never_overrun(terminal: tuple[int, str]) -> None:
    _, written = terminal
    assert re.search(r"\x1b\[\d*A", written)  # up again, to draw over what was there
    view = ESCAPE.sub("", written.partition("All 3 trials")[0])
    lines = [line for row in view.split("\n") for line in row.split("\r")]
    assert max(map(len, lines)) <= COLUMNS
    assert "━no result yet" not in view and "━best" not in view  # the bar has its line for itself
    assert written.rstrip().endswith("dlnn-search dashboard --open")


def test_a_pipe_gets_plain_lines(place: Place) -> None:
    study = place.write_study()
    done = place.run("start", study, "--workers", 2, "--trials", 2, TERM="xterm-256color")
    assert done.code == 0, done.both
    assert "\x1b" not in done.both and "\r" not in done.both
    view = done.out.partition("\nAll 2 trials")[0].splitlines()
    assert view and all(LINE.fullmatch(line) for line in view), done.out
    assert "Worker" not in done.both


def test_a_file_gets_no_escape_codes_from_any_command(searched: Place, tmp_path: Path) -> None:
    for arguments in (["studies"], ["trials", "tiny"], ["best", "tiny"], ["--help"], ["ledger"]):
        assert "\x1b" not in searched.run(*arguments, TERM="xterm-256color").both


def test_a_search_is_watched_and_its_logs_followed_until_ctrl_c_or_its_end(place: Place) -> None:
    study = place.write_study(**SLOW)
    with place.begin("start", study, "--workers", 1, "--trials", 2) as start:
        wait_for("an epoch", place.curves)
        code, written = in_a_terminal(place, "status", "tiny", "--watch", until="img/s")
        assert code == 130 and "Traceback" not in written, written
        assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor is back
        with (
            place.begin("status", "tiny", "--watch") as watched,
            place.begin("logs", "tiny", "--follow", "-n", 0) as followed,
        ):
            with place.begin("logs", "tiny", "--follow") as interrupted:
                wait_for("the lines so far", lambda: " Trial 0 begins" in interrupted.said())
                interrupted.interrupt()
                assert interrupted.wait() == 130
                assert "Traceback" not in interrupted.said()
            assert start.wait() == 0, start.said()
            assert watched.wait() == 0 and followed.wait() == 0
    assert "2 of 2 trials" in watched.said() and "\x1b" not in watched.said()
    assert " Trial 1 is complete, common_sense_error " in followed.said()
    # What is over already is shown once, and not waited for.
    code, written = in_a_terminal(place, "status", "tiny", "--watch")
    assert code == 0 and "2 of 2 trials" in ESCAPE.sub("", written)
    assert "Trial 1 is complete" in place.succeed("logs", "tiny", "--follow")
