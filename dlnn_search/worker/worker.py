"""A worker: claims slots of one study and trains them until none may be claimed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from dlnn_search.errors import DlnnSearchError, ExitCode, OutageError, StudyError
from dlnn_search.optuna_version import trial_id_of
from dlnn_search.storage.budget import budget_use
from dlnn_search.storage.control import Orders, is_first, set_control, stop_after_bugs
from dlnn_search.storage.control import orders as orders_of
from dlnn_search.storage.curves import curve_of_slot
from dlnn_search.storage.database import Database
from dlnn_search.storage.database.outages import pause_seconds
from dlnn_search.storage.duplicates import Duplicate, settle_like
from dlnn_search.storage.halves import lost_words
from dlnn_search.storage.slots import MAX_LOSSES, LostLeaseError, Slot, Slots
from dlnn_search.storage.studies import StoredStudy
from dlnn_search.storage.workers import Presence, add_event
from dlnn_search.study import Study
from dlnn_search.worker.claiming import Claim, Claimed
from dlnn_search.worker.convergence import stop_if_converged
from dlnn_search.worker.ending import Ending
from dlnn_search.worker.interruption import Interruption, MemoryWatch
from dlnn_search.worker.joining import as_stored, join_study, with_kept_rate
from dlnn_search.worker.objective import Objective, Verdict
from dlnn_search.worker.optuna_study import (
    begin_made,
    begin_trial,
    open_optuna_study,
    put_back,
    sweep,
    tell,
    tell_what_is_untold,
)
from dlnn_search.worker.outbox import report_whole_curve

#: Between two looks for a slot that its holder may lose.
WAIT_SECONDS = 2.0
#: Between two looks for trials that nobody runs, while there is nothing else to do.
SWEEP_SECONDS = 30.0
#: That many failures in a row by a bug, over all workers, and the study is taken to be broken.
MAX_BUGS_IN_A_ROW = 3
#: A database that is away when the worker ends is tried that long: a killer may wait.
LAST_WORDS_SECONDS = 3.0

T = TypeVar("T")

log = logging.getLogger(__name__)


def run_worker(
    study: Study,
    database: Database,
    *,
    name: str | None = None,
    prepare: Callable[[], None] = lambda: None,
    memory: MemoryWatch | None = None,
    **about: Any,
) -> int:
    """Train trials until none may be claimed any more, and return the exit code.

    Args:
        study: As it is here.
        database: That knows it already.
        name: The worker's, None makes one.
        prepare: Imports TensorFlow, which takes seconds: the worker is shown meanwhile.
        memory: Ends the worker when it has grown; None lets it grow.
        about: What its row says of it: `gpu`, `threads`, `log`, `supervisor`.

    Returns:
        `ExitCode.DONE` where the budget is used up or the study was asked to stop;
        `ExitCode.INTERRUPTED` after a signal; `ExitCode.RECYCLED` when memory has grown.

    Raises:
        UsageError: If the study was never started.
        StudyError: If the study or its pictures differ from the stored ones, or if it fails
            again and again.
        StorageError, DataError: If the database, the disk or the data fails for good; what was
            begun goes on from its checkpoint at the next start.
    """
    named = study
    study = database.retrying(lambda: as_stored(named, database))
    stored = join_study(study, database)
    study = database.retrying(lambda: with_kept_rate(study, database, stored))
    interrupted = Interruption(alone=about.get("supervisor") is None)
    # From before its row is made until after it says that the worker ended.
    with interrupted.listening():
        presence = Presence(database, stored.id, name, **about)
        return _Worker(study, stored, database, presence, interrupted, memory).run(prepare)


class _Worker:
    """One worker, and the slot that it holds, if it does."""

    def __init__(
        self,
        study: Study,
        stored: StoredStudy,
        database: Database,
        presence: Presence,
        interrupted: Interruption,
        memory: MemoryWatch | None,
    ) -> None:
        self._study = study
        self._stored = stored
        self._study_id = stored.id
        self._database = database
        self._presence = presence
        self._interrupted = interrupted
        self._memory = memory
        self._slots = Slots(database, stored.id, on_orders=self._interrupted.hear)
        self._optuna_study = open_optuna_study(study, database)
        self._objective = Objective(
            study,
            database,
            self._slots,
            presence,
            threads=None,  # set by the environment, before TensorFlow was imported
            interrupted=self._interrupted,
        )
        self._slot: Slot | None = None
        self._may_converge = False
        self._n_troubles = 0
        self._swept = 0.0

    def run(self, prepare: Callable[[], None]) -> int:
        try:
            prepare()
            return self._work()
        except OutageError:
            if not self._interrupted.by_signal:
                raise
            return ExitCode.INTERRUPTED
        except Exception:
            self._check_whole()
            raise
        finally:
            # The disk or the server may be what failed: the lease then ends by itself.
            with suppress(DlnnSearchError):
                self._database.retrying(self._leave, seconds=LAST_WORDS_SECONDS)

    def _check_whole(self) -> None:
        """Say so where an error comes of a study that was deleted or renamed meanwhile.

        Raises:
            StudyError: If it was. The trial's id may be another study's by now: it is left alone.
        """
        words = self._retrying(
            lambda: lost_words(self._database, self._study_id, self._stored.name)
        )
        if words is not None:
            self._slot = None
            raise StudyError(words)

    def _work(self) -> int:
        self._sweep()
        while not self._interrupted.by_signal:
            claimed = self._claim()
            self._slot = claimed.slot
            if self._slot is None:
                code = self._wait_for_a_slot()
                if code is not None:
                    return code
                continue
            self._interrupted.begin_anew()
            verdict = self._hold(self._slot, claimed)
            self._slot = None
            if verdict is None:
                continue
            self._draw_conclusions(verdict)
            if self._memory is not None and (grown := self._memory.grown_words()):
                words = f"Worker {self._presence.worker} ends: its {grown}. A new one may start."
                self._event("recycled", words)
                self._show(message=grown)
                return ExitCode.RECYCLED
        return ExitCode.INTERRUPTED

    def _claim(self) -> Claimed:
        worker = self._presence.worker
        while True:
            claim = Claim(self._database, self._slots, self._study, self._optuna_study, worker)
            claimed = self._retrying(claim)
            if not claimed.is_untold:
                return claimed
            self._retrying(lambda: tell_what_is_untold(self._optuna_study, self._slots))

    def _wait_for_a_slot(self) -> int | None:
        """Wait a little; return the exit code instead where no slot will be given any more."""
        orders = self._orders()
        if orders.control in ("stop", "stop_now"):
            why = f": {_last_line(orders.reason)}" if orders.reason else "."
            return self._leave_off(f"The study '{self._study.name}' is asked to stop{why}")
        if self._retrying(self._slots.all_done):
            return self._leave_off(None)
        if orders.time_is_up:
            use = self._retrying(lambda: budget_use(self._database, self._study_id))
            return self._leave_off(f"The budget of '{self._study.name}' is {use.exhausted}.")
        state = "paused" if orders.control == "pause" else "waiting"
        self._show(state=state, message=orders.reason)
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._sweep()
        self._wait(WAIT_SECONDS)
        return None

    def _leave_off(self, words: str | None) -> int:
        self._sweep()
        if words is not None:
            log.warning("%s", words)
            self._show(message=words)
        return ExitCode.DONE

    def _hold(self, slot: Slot, claimed: Claimed) -> Verdict | None:
        """Train a slot's trial and store what came of it; None where the slot was lost."""
        try:
            return self._run(slot, claimed)
        except LostLeaseError as lost:
            log.warning("%s This worker's result is dropped.", lost)
            self._event(
                "fenced", f"{self._presence.worker} had lost slot {slot.number}: {lost}", slot
            )
            return None

    def _run(self, slot: Slot, claimed: Claimed) -> Verdict:
        trial: optuna.Trial | None = None
        try:
            with self._interrupted.training():
                trial = self._begin(slot, claimed)
                if slot.losses >= MAX_LOSSES:
                    verdict = Verdict(
                        "failed",
                        reason=f"Lost {slot.losses} times: its workers were killed or hung.",
                        failure="lost",
                    )
                else:
                    verdict = self._objective(trial, slot)
        except KeyboardInterrupt:
            verdict = Verdict(None)
        if self._interrupted.now and (verdict.outcome == "failed" or verdict.trouble):
            # Libraries turn the interruption into errors of their own: the trial is not to blame.
            verdict = Verdict(None)
        if verdict.failure == "bug" and self._retrying(
            lambda: is_first(self._database, self._study_id, slot.id)
        ):
            verdict = replace(verdict, outcome=None)  # it costs nothing: the search ends here
        if (
            trial is not None
            and verdict.duplicate is not None
            and verdict.duplicate.outcome is not None
        ):
            return self._reuse(slot, trial, verdict.duplicate)
        if verdict.waits:
            return verdict
        if trial is None or verdict.outcome is None:
            self._give_back(slot, verdict)
        else:
            outcome = verdict.outcome
            self._end(
                slot,
                trial,
                verdict,
                lambda: self._slots.settle(
                    slot,
                    outcome,
                    value=verdict.value,
                    best_epoch=verdict.best_epoch,
                    reason=verdict.reason,
                    failure=verdict.failure,
                ),
            )
        return verdict

    def _begin(self, slot: Slot, claimed: Claimed) -> optuna.Trial:
        if claimed.trial_id is None:
            trial = self._begin_anyhow(slot)
        else:
            sampler, trial_id = claimed.sampler, claimed.trial_id
            trial = begin_made(self._optuna_study, self._study, sampler, slot, trial_id)
        log.info("Trial %d begins%s.", trial.number, "" if slot.fence == 1 else " again")
        return trial

    def _begin_anyhow(self, slot: Slot) -> optuna.Trial:
        """Begin the trial of a slot that may have one, or take one that was enqueued."""
        tries = 0

        def begin() -> optuna.Trial:
            nonlocal tries
            tries += 1
            return begin_trial(self._optuna_study, self._study, slot, again=tries > 1)

        trial = self._retrying(begin)
        trial_id = self._retrying(lambda: trial_id_of(self._optuna_study, trial))
        try:
            self._retrying(lambda: self._slots.begin(slot, trial_id, trial.number))
        except LostLeaseError:
            if self._slots.trial_of(slot) != trial_id:  # nobody will go on with it
                tell(self._optuna_study, trial_id, "failed", None, failure="lost")
            raise
        return trial

    def _reuse(self, slot: Slot, trial: optuna.Trial, duplicate: Duplicate) -> Verdict:
        """Give a trial the result of another with the same config."""
        assert duplicate.outcome is not None
        verdict = Verdict(
            duplicate.outcome,
            value=duplicate.value,
            best_epoch=duplicate.best_epoch,
            reason=duplicate.reason,
            failure="diverged" if duplicate.failure is not None else None,
            duplicate=duplicate,
        )
        points = self._retrying(lambda: curve_of_slot(self._database, duplicate.slot_id))
        values = {point.epoch: point.metrics[self._study.metric] for point in points}

        def report() -> None:
            with suppress(UpdateFinishedTrialError):  # ended in the dashboard
                trial_id = trial_id_of(self._optuna_study, trial)
                report_whole_curve(self._optuna_study, trial_id, self._study.metric, values)

        self._end(
            slot,
            trial,
            verdict,
            report,
            lambda: settle_like(self._database, self._study_id, slot, duplicate),
        )
        return verdict

    def _end(
        self, slot: Slot, trial: optuna.Trial, verdict: Verdict, *settle: Callable[[], None]
    ) -> None:
        """Let slot and trial have the outcome."""
        ending = Ending(
            self._database, self._slots, self._study, self._study_id, slot, trial, verdict
        )
        self._retrying(lambda: ending.write(*settle))
        self._may_converge = ending.may_converge
        value = "" if verdict.value is None else f", {self._study.metric} {verdict.value:.6g}"
        log.info("Trial %d is %s%s.", trial.number, verdict.outcome, value)
        self._retrying(ending.keep_checkpoint)

    def _give_back(self, slot: Slot, verdict: Verdict) -> None:
        """Release a slot; its trial waits, as nobody runs it."""
        self._retrying(lambda: self._release(slot, verdict))

    def _release(self, slot: Slot, verdict: Verdict) -> None:
        trial_id = self._slots.trial_if_held(slot)

        def wait() -> None:
            if trial_id is not None:
                put_back(self._optuna_study, trial_id)

        def release() -> None:
            self._slots.release(slot, failure=verdict.failure, reason=verdict.reason)

        self._database.at_once(wait, release)

    def _draw_conclusions(self, verdict: Verdict) -> None:
        """Act on what a trial's end says of the data, the disk, or the study."""
        if verdict.trouble is not None:
            self._n_troubles += 1
            if self._n_troubles == 1:
                log.warning("%s", verdict.trouble)
                self._event("trouble", verdict.trouble)
            self._show(state="troubled", message=verdict.trouble)
            self._wait(pause_seconds(self._n_troubles), for_orders=True)
            return
        if self._n_troubles and verdict.outcome is not None:
            self._event("recovered", f"{self._presence.worker} trains again.")
            self._n_troubles = 0
        if verdict.outcome == "complete" and self._may_converge:
            worker = self._presence.worker
            self._retrying(lambda: stop_if_converged(self._database, self._stored, worker=worker))
        if verdict.space_is_over is not None:
            self._retrying(lambda: self._stop(verdict.space_is_over))
        if verdict.bug is None:
            return
        log.error("%s", verdict.bug)
        traceback = verdict.bug
        if verdict.outcome is None:
            worker = self._presence.worker
            self._retrying(
                lambda: set_control(
                    self._database, self._study_id, "stop", traceback, worker=worker
                )
            )
            raise StudyError(
                f"The first trial of '{self._study.name}' failed, which cost no part of the "
                f"budget: {verdict.reason}\nMend the study, then start it again."
            )
        stopped = self._retrying(
            lambda: stop_after_bugs(
                self._database,
                self._study_id,
                MAX_BUGS_IN_A_ROW,
                traceback,
                worker=self._presence.worker,
            )
        )
        if stopped:
            raise StudyError(
                f"{MAX_BUGS_IN_A_ROW} trials in a row failed, the last with: {verdict.reason} "
                "Mend the study, then start it again, with --fresh where a trial has a result."
            )

    def _stop(self, why: str | None) -> None:
        """Let all workers finish what they train, and end; said once, whoever notices."""
        worker = self._presence.worker
        set_control(self._database, self._study_id, "stop", why, worker=worker, only_if="run")

    def _leave(self) -> None:
        """Give back what is held, and say that the worker ended."""
        if self._slot is not None:
            with suppress(LostLeaseError):
                self._release(self._slot, Verdict(None))
        self._presence.show(state="stopped", trial_number=None, slot_id=None)

    def _sweep(self) -> None:
        self._retrying(lambda: sweep(self._optuna_study, self._slots))
        self._swept = time.monotonic()

    def _orders(self) -> Orders:
        return self._retrying(lambda: orders_of(self._database, self._study_id))

    def _show(self, **values: Any) -> None:
        whole = {"trial_number": None, "slot_id": None, "epoch": None, **values}
        self._retrying(lambda: self._presence.show(**whole))

    def _event(self, kind: str, words: str, slot: Slot | None = None) -> None:
        with suppress(DlnnSearchError):  # a remark
            add_event(
                self._database,
                self._study_id,
                kind,
                words,
                worker=self._presence.worker,
                slot_id=None if slot is None else slot.id,
            )

    def _retrying(self, call: Callable[[], T]) -> T:
        return self._database.retrying(call, interrupted=lambda: self._interrupted.by_signal)

    def _wait(self, seconds: float, *, for_orders: bool = False) -> None:
        """Wait, but not when a signal comes, nor, if asked, when the study shall not run."""
        ends = time.monotonic() + seconds
        look_at = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < ends and not self._interrupted.by_signal:
            time.sleep(0.1)
            if for_orders and time.monotonic() > look_at:
                if self._orders().control != "run":
                    return
                look_at = time.monotonic() + WAIT_SECONDS


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
