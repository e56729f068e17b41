"""A worker: claims slots of one study and trains them until the budget is used up."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import optuna

from dlnn_search.errors import DlnnSearchError, StudyError
from dlnn_search.search.objective import Objective, Verdict
from dlnn_search.search.optuna_study import begin_trial, open_optuna_study, tell
from dlnn_search.service.convergence import converged_words, stop_if_converged
from dlnn_search.service.joining import join_study
from dlnn_search.service.measured_rate import with_kept_rate
from dlnn_search.service.memory import EXIT_RECYCLED, MemoryWatch
from dlnn_search.service.note import write_note
from dlnn_search.storage.artifacts import settle_checkpoint
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.events import add_event
from dlnn_search.storage.presence import Presence
from dlnn_search.storage.retry import pause_seconds
from dlnn_search.storage.slots import MAX_LOSSES, LostLeaseError, Slot, Slots
from dlnn_search.study import Study

#: Between two looks for a slot that its holder may lose.
WAIT_SECONDS = 2.0
#: What an epoch may still take after a SIGTERM.
EPOCH_SECONDS = 12
#: Two SIGTERMs within that time are one.
SAME_SECONDS = 1.0
#: That many failures in a row by a bug, and the study is taken to be broken.
MAX_BUGS_IN_A_ROW = 3

EXIT_DONE = 0
#: Interrupted by a signal: slots released, checkpoints kept. 128 + SIGINT, as shells have it.
EXIT_INTERRUPTED = 130

log = logging.getLogger(__name__)


class Interruption:
    """The first signal lets the epoch end; the second one ends the worker now.

    A SIGTERM comes before a SIGKILL, under Slurm and Kubernetes 30 s before: a worker that nobody
    looks after gives itself `EPOCH_SECONDS`, then it ends now.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._asked = False
        self._asked_at = 0.0
        self.now = False
        """Whether the second signal came."""

    def __call__(self) -> bool:
        return self._asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        previous = {
            number: signal.signal(number, self._hear)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        }
        try:
            yield
        finally:
            signal.alarm(0)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            self._asked, self._asked_at = True, time.monotonic()
            if number == signal.SIGTERM and self._alone:
                signal.alarm(EPOCH_SECONDS)
        elif number != signal.SIGTERM or time.monotonic() - self._asked_at > SAME_SECONDS:
            # Slurm sends a SIGTERM to each process, and our supervisor passes its own on.
            self.now = True
            raise KeyboardInterrupt


def run_worker(
    study: Study,
    database: Database,
    *,
    name: str | None = None,
    prepare: Callable[[], None] = lambda: None,
    memory: MemoryWatch | None = None,
    **about: Any,
) -> int:
    """Train trials until none is left, and return the exit code.

    Args:
        study: As it is here.
        database: That knows it already.
        name: The worker's, None makes one.
        prepare: Imports TensorFlow, which takes seconds: the worker is shown meanwhile.
        memory: Ends the worker when it has grown; None lets it grow.
        about: What its row says of it: `gpu`, `threads`, `log`, `supervisor`.

    Raises:
        UsageError: If the study was never started.
        StudyError: If the study or its pictures differ from the stored ones, or if it fails
            again and again.
        StorageError, DataError: If the database, the disk or the data fails; what was begun
            goes on from its checkpoint at the next start.
    """
    stored = join_study(study, database)
    study = with_kept_rate(study, database, stored)
    slots = Slots(database, stored.id)
    presence = Presence(database, stored.id, name, **about)
    optuna_study = open_optuna_study(study, database)
    interrupted = Interruption(alone=about.get("supervisor") is None)
    # Its threads were set by the environment, before TensorFlow was imported.
    objective = Objective(study, database, slots, presence, threads=None, interrupted=interrupted)
    slot: Slot | None = None
    n_bugs = 0
    n_troubles = 0
    try:
        with interrupted.listening():
            prepare()
            while not interrupted():
                _tell_what_is_untold(optuna_study, slots)
                slot = slots.claim(presence.worker)
                if slot is None:
                    if slots.all_done() or converged_words(database, stored.id):
                        return EXIT_DONE
                    presence.show(state="waiting", trial_number=None, epoch=None)
                    _wait(interrupted)
                    continue
                try:
                    verdict = _run_slot(
                        slot, slots, optuna_study, study, objective, database, interrupted
                    )
                except LostLeaseError as lost:
                    log.warning("%s This worker's result is dropped.", lost)
                    slot = None
                    continue
                slot = None
                if verdict.outcome == "complete":
                    stop_if_converged(database, stored, worker=presence.worker)
                n_troubles = n_troubles + 1 if verdict.trouble else 0
                if verdict.trouble:
                    log.warning("%s", verdict.trouble)
                    presence.show(state="troubled", message=verdict.trouble, trial_number=None)
                    _wait(interrupted, pause_seconds(n_troubles))
                    continue
                n_bugs = n_bugs + 1 if verdict.bug else 0
                if verdict.bug:
                    log.error("%s", verdict.bug)
                if n_bugs == MAX_BUGS_IN_A_ROW:
                    raise StudyError(
                        f"{n_bugs} trials in a row failed, the last with: {verdict.reason} "
                        "Mend the study, then start it again."
                    )
                if memory is not None and (grown := memory.grown_words()):
                    words = f"Worker {presence.worker} ends: its {grown}. A new one may start."
                    add_event(database, stored.id, "recycled", words, worker=presence.worker)
                    presence.show(message=grown)
                    return EXIT_RECYCLED
            return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        # The disk or the server may be what failed: the lease then ends by itself.
        with suppress(DlnnSearchError):
            if slot is not None:
                slots.release(slot)
            presence.show(state="stopped", trial_number=None)


def _run_slot(
    slot: Slot,
    slots: Slots,
    optuna_study: optuna.Study,
    study: Study,
    objective: Objective,
    database: Database,
    interrupted: Interruption,
) -> Verdict:
    with storage_errors(database.url):
        trial = begin_trial(optuna_study, study, slot)
    try:
        slots.begin(slot, trial._trial_id, trial.number)
    except LostLeaseError:
        if slots.trial_of(slot) != trial._trial_id:  # nobody will go on with it
            tell(optuna_study, trial._trial_id, "failed", None)
        raise
    if slot.losses >= MAX_LOSSES:
        verdict = Verdict(
            "failed",
            reason=f"Lost {slot.losses} times: its workers were killed or hung.",
            failure="lost",
        )
    else:
        verdict = objective(trial, slot)
    if verdict.outcome == "failed" and interrupted.now:
        # Libraries turn the interruption into errors of their own: the trial is not to blame.
        raise KeyboardInterrupt
    if verdict.outcome is None:
        slots.release(slot, failure=verdict.failure, reason=verdict.reason)
        return verdict
    slots.settle(
        slot,
        verdict.outcome,
        value=verdict.value,
        best_epoch=verdict.best_epoch,
        reason=verdict.reason,
        failure=verdict.failure,
    )
    with storage_errors(database.url):
        write_note(trial, slot, verdict, database, study.metric)
        tell(
            optuna_study,
            trial._trial_id,
            verdict.outcome,
            verdict.value,
            failure=verdict.failure,
            reason=verdict.reason,
        )
    slots.mark_told(slot.id)
    settle_checkpoint(database, slot.id, study.keep_checkpoints)
    return verdict


def _tell_what_is_untold(optuna_study: optuna.Study, slots: Slots) -> None:
    """Finish the trials whose worker settled its slot and vanished right after."""
    for settled in slots.untold():
        tell(
            optuna_study,
            settled.trial_id,
            settled.outcome,
            settled.value,
            failure=settled.failure,
            reason=settled.reason,
        )
        slots.mark_told(settled.slot_id)


def _wait(interrupted: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not interrupted():
        time.sleep(0.1)
