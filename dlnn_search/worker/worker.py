"""A worker: claims slots of one study and trains them until none may be claimed."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import optuna

from dlnn_search.errors import DlnnSearchError, ExitCode, OutageError, StudyError
from dlnn_search.storage.budget import budget_use
from dlnn_search.storage.control import (
    Control,
    Orders,
    in_short,
    is_first,
    set_control,
    stop_after_bugs,
)
from dlnn_search.storage.control import orders as orders_of
from dlnn_search.storage.database import Database
from dlnn_search.storage.database.outages import pause_seconds
from dlnn_search.storage.halves import lost_words
from dlnn_search.storage.slots import LostLeaseError, Slots, new_token
from dlnn_search.storage.workers import WorkerRow
from dlnn_search.study import Study
from dlnn_search.worker.config_trial import train_config
from dlnn_search.worker.held_trial import HeldTrial, Search, claim
from dlnn_search.worker.interruption import Interruption, MemoryWatch
from dlnn_search.worker.joining import as_stored, join_study, stop_if_converged, with_kept_rate
from dlnn_search.worker.optuna_study import open_optuna_study
from dlnn_search.worker.reports import sweep
from dlnn_search.worker.verdict import Verdict

#: Between two looks for a slot that its holder may lose.
WAIT_SECONDS = 2.0
#: Between two looks for trials that nobody runs, while there is nothing else to do.
SWEEP_SECONDS = 30.0
#: That many failures in a row by a bug, over all workers, and the study is taken to be broken.
MAX_BUGS_IN_A_ROW = 3
#: A database that is away when the worker ends is tried that long: a killer may wait.
LAST_WORDS_SECONDS = 3.0

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
    if about.get("log") is not None:
        optuna.logging.enable_propagation()  # its warnings belong into the log, nowhere else
    named = study
    study = database.retrying(lambda: as_stored(named, database))
    stored = join_study(study, database)
    study = database.retrying(lambda: with_kept_rate(study, database, stored))
    interruption = Interruption(alone=about.get("supervisor") is None)
    # From before its row is made until after it says that the worker ended.
    with interruption.listening():
        worker_row = WorkerRow(database, stored.id, name, **about)
        search = Search(
            study,
            stored,
            database,
            open_optuna_study(study, database),
            Slots(database, stored.id, on_orders=interruption.hear),
            worker_row,
            interruption,
        )
        return _Worker(search, memory).run(prepare)


class _Worker:
    """One worker, and the trial that it holds, if it does."""

    def __init__(self, search: Search, memory: MemoryWatch | None) -> None:
        self._search = search
        self._interruption = search.interruption
        self._retrying = search.retrying
        self._memory = memory
        self._held: HeldTrial | None = None
        self._n_troubles = 0
        self._swept = 0.0

    def run(self, prepare: Callable[[], None]) -> int:
        try:
            prepare()
            return self._work()
        except OutageError:
            if not self._interruption.by_signal:
                raise
            return ExitCode.INTERRUPTED
        except Exception:
            self._check_whole()
            raise
        finally:
            # The disk or the server may be what failed: the lease then ends by itself.
            with suppress(DlnnSearchError):
                self._search.database.retrying(self._leave, seconds=LAST_WORDS_SECONDS)

    def _work(self) -> int:
        self._sweep()
        while not self._interruption.by_signal:
            self._held = held = self._claim()
            if held is None:
                code = self._wait_for_a_slot()
                if code is not None:
                    return code
                continue
            self._interruption.begin_anew()
            verdict = self._hold(held)
            self._held = None
            if verdict is None:
                continue
            self._draw_conclusions(verdict, may_converge=held.may_converge)
            if self._memory is not None and (grown := self._memory.grown_words()):
                worker = self._search.worker_row.worker
                words = f"Worker {worker} ends: its {grown}. A new one may start."
                self._search.note_event("recycled", words)
                self._show(message=grown)
                return ExitCode.RECYCLED
        return ExitCode.INTERRUPTED

    def _claim(self) -> HeldTrial | None:
        token, tries = new_token(), itertools.count()
        return self._retrying(lambda: claim(self._search, token, again=next(tries) > 0))

    def _hold(self, held: HeldTrial) -> Verdict | None:
        """Train a trial and store what came of it; None where its slot was lost."""
        search = self._search
        try:
            verdict = self._train(held)
            if verdict.failure == "bug" and self._retrying(
                lambda: is_first(search.database, search.stored.id, held.slot.id)
            ):
                verdict = replace(verdict, outcome=None)  # it costs nothing: the search ends here
            if verdict.trouble is not None or verdict.bug is not None:
                self._check_whole()
            return held.conclude(verdict)
        except LostLeaseError as lost:
            log.warning("%s This worker's result is dropped.", lost)
            words = f"{search.worker_row.worker} had lost slot {held.slot.number}: {lost}"
            search.note_event("fenced", words, held.slot)
            return None

    def _train(self, held: HeldTrial) -> Verdict:
        try:
            with self._interruption.training():
                held.begin()
                verdict = held.lost_too_often() or train_config(held)
        except KeyboardInterrupt:
            return Verdict(None)
        if self._interruption.now and (verdict.outcome == "failed" or verdict.trouble):
            # Libraries turn the interruption into errors of their own: the trial is not to blame.
            return Verdict(None)
        return verdict

    def _check_whole(self) -> None:
        """Say so where an error comes of a study that was deleted or renamed meanwhile.

        Raises:
            StudyError: If it was. The trial's id may be another study's by now: it is left alone.
        """
        database, stored = self._search.database, self._search.stored
        words = self._retrying(lambda: lost_words(database, stored.id, stored.name))
        if words is not None:
            self._held = None
            raise StudyError(words)

    def _wait_for_a_slot(self) -> int | None:
        """Wait a little; return the exit code instead where no slot will be given any more."""
        orders = self._orders()
        if orders.control in ("stop", "stop_now"):
            why = f": {in_short(orders.reason)}" if orders.reason else "."
            return self._leave_off(f"The study '{self._search.study.name}' is asked to stop{why}")
        if self._retrying(self._search.slots.all_done):
            return self._leave_off(None)
        if orders.time_is_up:
            use = self._retrying(lambda: budget_use(self._search.database, self._search.stored.id))
            return self._leave_off(f"The budget of '{self._search.study.name}' is {use.exhausted}.")
        state = "paused" if orders.control == "pause" else "waiting"
        self._show(state=state, message=in_short(orders.reason) if orders.reason else None)
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

    def _draw_conclusions(self, verdict: Verdict, *, may_converge: bool) -> None:
        """Act on what a trial's end says of the data, the disk, or the study."""
        search, worker = self._search, self._search.worker_row.worker
        if verdict.trouble is not None:
            self._n_troubles += 1
            if self._n_troubles == 1:
                log.warning("%s", verdict.trouble)
                search.note_event("trouble", verdict.trouble)
            self._show(state="troubled", message=verdict.trouble)
            self._wait(pause_seconds(self._n_troubles), for_orders=True)
            return
        if self._n_troubles and verdict.outcome is not None:
            search.note_event("recovered", f"{worker} trains again.")
            self._n_troubles = 0
        if verdict.outcome == "complete" and may_converge:
            self._retrying(lambda: stop_if_converged(search.database, search.stored, worker=worker))
        if verdict.space_is_over is not None:
            self._stop(verdict.space_is_over, only_if="run")  # said once, whoever notices
        if verdict.bug is None:
            return
        log.error("%s", verdict.bug)
        database, study_id, name = search.database, search.stored.id, search.study.name
        bug = f"{verdict.reason}\n{verdict.bug}"
        if verdict.outcome is None:
            self._stop(bug)
            raise StudyError(
                f"The first trial of '{name}' failed, which cost no part of the budget: "
                f"{verdict.reason}. Fix the study, then start it again."
            )
        stop = partial(stop_after_bugs, database, study_id, MAX_BUGS_IN_A_ROW, bug, worker=worker)
        if self._retrying(stop):
            raise StudyError(
                f"{MAX_BUGS_IN_A_ROW} trials in a row failed, the last one with: {verdict.reason}. "
                "Fix the study, then start it again; add --fresh if a trial has a result."
            )

    def _stop(self, why: str, *, only_if: Control | None = None) -> None:
        """Let all workers finish what they train, and end."""
        database, study_id = self._search.database, self._search.stored.id
        worker = self._search.worker_row.worker
        self._retrying(
            partial(set_control, database, study_id, "stop", why, worker=worker, only_if=only_if)
        )

    def _leave(self) -> None:
        """Give back what is held, and say that the worker ended."""
        if self._held is not None:
            with suppress(LostLeaseError):
                self._held.give_back(Verdict(None))
        self._search.worker_row.show(state="stopped", trial_number=None, slot_id=None)

    def _sweep(self) -> None:
        self._retrying(lambda: sweep(self._search.optuna_study, self._search.slots))
        self._swept = time.monotonic()

    def _orders(self) -> Orders:
        return self._retrying(lambda: orders_of(self._search.database, self._search.stored.id))

    def _show(self, **values: Any) -> None:
        whole = {"trial_number": None, "slot_id": None, "epoch": None, **values}
        self._retrying(lambda: self._search.worker_row.show(**whole))

    def _wait(self, seconds: float, *, for_orders: bool = False) -> None:
        """Wait, but not when a signal comes, nor, if asked, when the study shall not run."""
        ends = time.monotonic() + seconds
        look_at = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < ends and not self._interruption.by_signal:
            time.sleep(0.1)
            if for_orders and time.monotonic() > look_at:
                if self._orders().control != "run":
                    return
                look_at = time.monotonic() + WAIT_SECONDS
