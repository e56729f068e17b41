"""What came of a trial, and what can go wrong with one: each kind of failure has its policy."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dlnn_search.errors import (
    DataError,
    DivergedError,
    DlnnSearchError,
    OutageError,
    StorageError,
    one_line,
)
from dlnn_search.files import is_users_code
from dlnn_search.metrics import direction_of, loss_sign
from dlnn_search.storage.budget import duration_words
from dlnn_search.storage.duplicates import Duplicate
from dlnn_search.storage.slots import Outcome

#: Why a trial failed, as `slots.failure` and Optuna's user attribute `failure` have it.
Kind = Literal["diverged", "out_of_memory", "lost", "bug", "infeasible", "timeout"]


@dataclass(frozen=True)
class Policy:
    """What happens after a failure.

    Attributes:
        attempts: After so many of them the trial is FAILED; 1 is at once.
        words: For people.
    """

    attempts: int
    words: str


POLICIES: dict[Kind, Policy] = {
    # The same config diverges again: it is the result.
    "diverged": Policy(1, "failed at once: the config is to blame"),
    # Another worker, another moment: the memory may have been someone else's.
    "out_of_memory": Policy(3, "tried again, up to 3 times in all"),
    "lost": Policy(3, "goes on from its checkpoint, up to 3 times in all"),
    # Somebody fixed parameters that the space refuses: else it is asked for others.
    "infeasible": Policy(1, "failed at once: the space refuses its parameters"),
    # As long again would be needed, and come to the same.
    "timeout": Policy(1, "failed: its first epoch took longer than --trial-timeout"),
    "bug": Policy(1, "failed; a few in a row stop the study"),
}

#: Draws of one trial: so many in a row that the space refuses, or that are trained already.
MAX_DRAWS = 100
#: Why that ends a search.
USED_UP = (
    f"The space is used up: each of {MAX_DRAWS} more draws was a config that is trained already. "
    "Widen the space in a copy of the study to search on."
)
REFUSES_ALL = (
    f"Nothing is feasible: the space refused {MAX_DRAWS} draws in a row (optuna.TrialPruned). Let "
    "it refuse less, or narrow its ranges to what is allowed."
)

#: Errors of disks, mounts and networks below them, which end by themselves or by a human hand.
_OF_A_DISK = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.ESTALE,
        errno.ENODEV,
        errno.ENXIO,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.ETIMEDOUT,
    }
)
#: How TensorFlow, CUDA, cuDNN and XLA say that memory is short, in errors of many classes.
_OF_MEMORY = (
    "oom when allocating",
    "resource_exhausted",
    "failed to allocate memory",
    "cuda_error_out_of_memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "dst tensor is not initialized",
)


#: Longest reason that is kept of a trial, in characters; the log has the traceback.
MAX_REASON = 500


@dataclass(frozen=True)
class Verdict:
    """What came of a trial.

    Attributes:
        outcome: None where training was cut short and will go on later: interrupted; out of
            memory with attempts left (`failure` says so); or stopped by a `trouble`.
        value: The best epoch's metric on the validation split.
        reason: Why it failed, or was cut short.
        failure: Its kind. With an outcome of None it costs the slot an attempt, as a loss does.
        trouble: Data, disk or database are missing: the trial is not to blame. The slot is
            released at no cost, and the worker pauses and tries again.
        bug: The traceback, where the study's or our own code is to blame.
        duplicate: Another trial with the same config: its result counts for this one, too.
        waits: The slot waits for another one, and nobody holds it any more.
        space_is_over: Why the space has nothing more to train, which ends the search.
    """

    outcome: Outcome | None
    value: float | None = None
    best_epoch: int | None = None
    reason: str | None = None
    failure: Kind | None = None
    trouble: str | None = None
    bug: str | None = None
    duplicate: Duplicate | None = None
    waits: bool = False
    space_is_over: str | None = None

    @property
    def duplicate_of(self) -> int | None:
        """The number of the trial whose result it has."""
        return None if self.duplicate is None else self.duplicate.trial_number


class TrialTimeoutError(Exception):
    """A trial has trained for as long as it may; `verdict` is what comes of it."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


def out_of_time(values: Mapping[int, float], metric: str, seconds: float) -> Verdict:
    """Return what comes of a trial that has trained for as long as it may.

    Its best epoch was measured as any other, so it is pruned with that: samplers learn from it, and
    it is no candidate for the study's best, which has to train all its epochs.

    Args:
        values: The metric by epoch, of the epochs that were finished.
        metric: That the study optimises.
        seconds: The limit.
    """
    limit = duration_words(seconds)
    if not values:
        reason = (
            f"Its first epoch did not end within {limit}, the study's --trial-timeout. Raise the "
            "limit, or let the space offer smaller networks."
        )
        return Verdict("failed", reason=reason, failure="timeout")
    sign = loss_sign(direction_of(metric))
    best = min(values, key=lambda epoch: (sign * values[epoch], epoch))
    reason = f"Stopped after {limit} by --trial-timeout; {len(values)} epochs were finished."
    return Verdict("pruned", value=values[best], best_epoch=best, reason=reason)


@dataclass(frozen=True)
class Failure:
    """Why a trial could not be trained now.

    Attributes:
        kind: None for a trouble with data, disk or database: the trial is not to blame, and is
            trained when the trouble has passed.
        reason: One message, for people.
        traceback: Where the study's or our code is to blame.
    """

    kind: Kind | None
    reason: str
    traceback: str | None = None


def failure_of(error: Exception, *, had_data: bool) -> Failure:
    """Tell what an error means for the trial in whose training it arose.

    Args:
        error: What was raised; its causes are looked at, too.
        had_data: Whether this machine has had the study's data. If so, missing data are a
            trouble that may pass; if not, they were never there.

    Raises:
        DataError: The error itself, if the data were never there.
        StorageError: The error itself, if trying again cannot help.
    """
    said = str(error) if isinstance(error, DlnnSearchError) else f"{type(error).__name__}: {error}"
    reason = one_line(said)
    if len(reason) > MAX_REASON:  # TensorFlow adds the graph and hints
        reason = f"{reason[: MAX_REASON - 3]}..."
    if any(map(_is_of_a_disk, _causes(error))) or isinstance(error, OutageError):
        return Failure(None, reason)
    if isinstance(error, StorageError):
        raise error
    if any(map(_is_of_memory, _causes(error))):
        return Failure("out_of_memory", _first_line(said))
    if isinstance(error, DataError):
        if not had_data:
            raise error
        return Failure(None, reason)
    if isinstance(error, DivergedError):
        return Failure("diverged", reason)
    where = _place_in_own_code(error)
    return Failure("bug", reason + where, "".join(traceback.format_exception(error)))


def _place_in_own_code(error: BaseException) -> str:
    """Return ` (FILE, line N)` of the user's code where an error arose; nothing where in none."""
    for cause in reversed(list(_causes(error))):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if is_users_code(frame.filename):
                return f" ({frame.filename}, line {frame.lineno})"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    seen: set[int] = set()
    next_one: BaseException | None = error
    while next_one is not None and id(next_one) not in seen:
        seen.add(id(next_one))
        yield next_one
        context = None if next_one.__suppress_context__ else next_one.__context__
        next_one = next_one.__cause__ or context


def _is_of_a_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _OF_A_DISK
    # TensorFlow's word for a full disk is the one for too little memory.
    return _is_exhausted(error) and "No space left on device" in str(error)


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or _is_exhausted(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return not isinstance(error, DlnnSearchError) and any(words in said for words in _OF_MEMORY)


def _is_exhausted(error: BaseException) -> bool:
    """Whether it is TensorFlow's `ResourceExhaustedError`, which is not imported for that."""
    return any(kind.__name__ == "ResourceExhaustedError" for kind in type(error).__mro__)


def _first_line(text: str) -> str:
    """TensorFlow adds the graph and hints to its first line."""
    line = one_line(text.strip().splitlines()[0]) if text.strip() else "Out of memory."
    return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 3]}..."
