"""The errors a user may see: each says what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable
from enum import IntEnum

#: What a terminal takes for an order and not for text: colours, titles, and their like.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_]|.?)")
#: Control characters but for the tab and the line feed. Those that turn the direction of writing
#: can make a text look like another one.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*|\t+")


class ExitCode(IntEnum):
    """What a command ends with; docs/reference.md lists them for users."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    STUDY = 3
    DATA = 4
    STORAGE = 5
    TRAINING = 6
    #: An error of ours, not of the user (BSD's sysexits.h, EX_SOFTWARE).
    BUG = 70
    #: A worker's memory has grown: start a new one (BSD's sysexits.h, EX_TEMPFAIL).
    RECYCLED = 75
    #: Ended by a signal: slots are given back, checkpoints kept. 128 + SIGINT, as shells have it.
    INTERRUPTED = 130


class DlnnSearchError(Exception):
    """Base of every error that is shown as one message, without a traceback.

    Attributes:
        exit_code: What the command line exits with.
        sentence: What was expected, what came and what to do, in one line.
        details: Lines that belong below the sentence, such as what differs between two versions;
            most errors have none.
    """

    exit_code: int = ExitCode.FAILED

    def __init__(self, sentence: str = "", *, details: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.details = details

    def __str__(self) -> str:
        return f"{self.sentence}\n{self.details}" if self.details else self.sentence


class UsageError(DlnnSearchError):
    """A command, a name or an option that cannot be meant as it stands."""

    exit_code = ExitCode.USAGE


class StudyError(DlnnSearchError):
    """A study file that cannot be read, or whose space makes no valid config."""

    exit_code = ExitCode.STUDY


class DataError(DlnnSearchError):
    """A data set that is missing, damaged or of the wrong form."""

    exit_code = ExitCode.DATA


class StorageError(DlnnSearchError):
    """A database or a disk that cannot be reached, written or understood."""

    exit_code = ExitCode.STORAGE


class OutageError(StorageError):
    """A database or a disk that fails now and may be back by itself: worth another try."""


class TrainingError(DlnnSearchError):
    """A training that cannot go on."""

    exit_code = ExitCode.TRAINING


class DivergedError(TrainingError):
    """The loss became NaN or infinite, or left all bounds."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, else the list of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(choices)}." if choices else ""


def as_text(text: str) -> str:
    """Return a text without what a terminal would obey: colours, cursors, bells."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text).replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return a text as one line without terminal codes."""
    return as_text(_BREAKS.sub(" ", _ESCAPES.sub("", text).strip()))


def error_words(error: DlnnSearchError) -> str:
    """Return an error as it is printed: its sentence in one line, then its details."""
    details = [f"  {as_text(detail)}".rstrip() for detail in error.details.splitlines()]
    return "\n".join([f"Error: {one_line(error.sentence)}", *details])


def wrapped(text: str, width: int) -> str:
    """Return a text whose lines are broken at words to fit a terminal.

    What has no blanks, such as a path, stays whole: it is there to be copied.
    """
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
            replace_whitespace=False,
        ) or [""]
    return "\n".join(lines)


def error_from_words(words: str, kind: type[DlnnSearchError] = DlnnSearchError) -> DlnnSearchError:
    """Return the error that another process printed, as `error_words` writes it."""
    sentence, _, details = words.removeprefix("Error: ").partition("\n")
    return kind(sentence, details=textwrap.dedent(details))
