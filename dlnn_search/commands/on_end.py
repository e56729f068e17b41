"""The command of `start --on-end`: how a search ended, told to a program of the user's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from dlnn_search.errors import DlnnSearchError, ExitCode
from dlnn_search.launch.detached import exit_words
from dlnn_search.pruners import CONVERGED
from dlnn_search.report.live import status_json
from dlnn_search.results.advice import look
from dlnn_search.results.status import StudyStatus
from dlnn_search.secret import hidden
from dlnn_search.storage.database import open_database, without_secrets
from dlnn_search.storage.studies import look_up
from dlnn_search.study import Study

#: The command of `--on-end` may take that long.
ON_END_SECONDS = 60.0
#: Brings that command to a process in the background: everybody sees arguments in a list of
#: processes, and the address of a webhook is a secret.
ON_END = "DLNN_SEARCH_ON_END"
#: Of an error, in the command's environment.
MAX_REASON_CHARACTERS = 1_000

End = Literal["complete", "exhausted", "converged", "stopped", "timeout", "interrupted", "failed"]


@dataclass(frozen=True)
class Ended:
    """How a start ended.

    Attributes:
        by_itself: Not by a signal or its time-out.
        timed_out: By its time-out.
    """

    status: StudyStatus
    by_itself: bool
    timed_out: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """What the command exits with."""
        if not self.by_itself:
            return ExitCode.INTERRUPTED
        return ExitCode.STUDY if self.status.is_fruitless else ExitCode.DONE


class OnEnd:
    """Runs a command when the block is left, however that is: a search has ended, or failed.

    Nothing of it changes how the search ended.
    """

    def __init__(
        self, command: str | None, study: Study, url: str, say: Callable[[str], None]
    ) -> None:
        self.ended: Ended | None = None
        self._command = command
        self._study = study
        self._url = url
        self._say = say

    def __enter__(self) -> OnEnd:
        return self

    def leave(self) -> None:
        """Leave it to another process."""
        self._command = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._command is None:
            return
        if error is not None:
            end, reason, code = _end_of_error(error)
        else:
            assert self.ended is not None
            (end, reason), code = _end_of(self.ended), self.ended.exit_code
        reason = hidden(" ".join(reason.split()))[:MAX_REASON_CHARACTERS]
        status, told = self._look()
        best = None if status is None or status.best is None else status.best.value
        environment = {
            "DLNN_SEARCH_STUDY": self._study.name,
            "DLNN_SEARCH_END": end,
            "DLNN_SEARCH_REASON": reason,
            "DLNN_SEARCH_METRIC": self._study.metric,
            "DLNN_SEARCH_BEST": "" if best is None else repr(best),
            "DLNN_SEARCH_TRIALS": "" if status is None else str(status.n_done),
            "DLNN_SEARCH_EXIT_CODE": str(int(code)),
            "DLNN_SEARCH_STORAGE": without_secrets(self._url),
        }
        with suppress(OSError):  # the terminal is gone
            self._say(f"Running the command of --on-end (at most {ON_END_SECONDS:.0f} s).")
        failed = _run_command(self._command, environment, told)
        if failed is not None:
            with suppress(OSError):
                self._say(f"The command of --on-end {failed}. The search is not affected.")

    def _look(self) -> tuple[StudyStatus | None, str]:
        """Return the study as it stands and as `status --json` prints it; `null` if unknown."""
        try:
            with open_database(self._url, create=False, read_only=True) as database:
                looked = look(database, look_up(database, self._study.name))
                return looked[0], json.dumps(status_json(*looked), indent=2)
        except Exception:  # whatever it is, the command still has to run
            return None, "null"


def _end_of(ended: Ended) -> tuple[End, str]:
    """Return how a search ended, in a word and in a sentence."""
    status = ended.status
    reason, done = (
        status.control_reason or "",
        f"{status.n_done} of {status.budget} trials are done.",
    )
    if ended.timed_out:
        return "timeout", f"The --timeout of this start was reached. {done}"
    if not ended.by_itself:
        return "interrupted", f"A signal (Ctrl-C or SIGTERM) stopped the search. {done}"
    if status.is_fruitless:
        return "failed", f"Every trial failed. {done}"
    if status.use.exhausted_by == "trials":
        return "complete", f"All {status.budget} trials are done."
    if status.control != "run" and reason.startswith(CONVERGED):
        return "converged", f"{reason} {done}"
    if status.use.exhausted is not None:
        return "exhausted", f"The budget is {status.use.exhausted}."
    by = f" Stopped by: {reason}" if status.control != "run" and reason else ""
    return "stopped", f"{done}{by}"


def _end_of_error(error: BaseException) -> tuple[End, str, int]:
    if isinstance(error, KeyboardInterrupt):
        reason = "A signal (Ctrl-C or SIGTERM) stopped the search before its workers began."
        return "interrupted", reason, ExitCode.INTERRUPTED
    if isinstance(error, DlnnSearchError):
        return "failed", str(error), error.exit_code
    return "failed", f"{type(error).__name__}: {error}", ExitCode.BUG


def _run_command(command: str, environment: dict[str, str], told: str) -> str | None:
    """Run a shell command with a text on its standard input; return in words how it failed."""
    try:
        process = subprocess.Popen(
            command,
            shell=True,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that all of it can be ended
        )
    except OSError as error:
        return f"could not be started: {error.strerror or error}"
    try:
        process.communicate(told, timeout=ON_END_SECONDS)
    except subprocess.TimeoutExpired:
        failed = f"was ended after {ON_END_SECONDS:.0f} s"
    except KeyboardInterrupt:
        failed = "was ended by a signal (Ctrl-C or SIGTERM)"
    else:
        return None if process.returncode == 0 else f"failed with {exit_words(process.returncode)}"
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return failed
