"""The errors a user may see: each says what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with; the README lists them for users."""

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
    """

    exit_code: int = ExitCode.FAILED


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
