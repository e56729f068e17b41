"""What Optuna and its dashboard are told of trials: reports, notes, ends; by whoever comes next.

A study's page in optuna-dashboard is sent whole at each refresh, and every suggestion reads the
reports of all trials. So Optuna gets about `MAX_REPORTS` epochs of a trial; our own tables have
them all.

Workers are killed between any two rows. Whoever works on a study next, or starts it, brings
Optuna's trials in line with the slots, which are the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from dlnn_search.metrics import DIRECTIONS, loss_sign, metric_name, metric_unit, metric_value
from dlnn_search.optuna_version import trial_id_of
from dlnn_search.samplers.observations import DUPLICATE_ATTRIBUTE
from dlnn_search.storage.database import Database
from dlnn_search.storage.halves import SLOT_ATTRIBUTE
from dlnn_search.storage.slots import LEASE_SECONDS, Fate, Outcome, Settled, Slots
from dlnn_search.storage.studies import all_studies
from dlnn_search.storage.trials import Point, curve_of_slot, is_best_so_far, note_of_slot
from dlnn_search.worker.optuna_study import put_back, storage_of, take_up
from dlnn_search.worker.verdict import Verdict

#: User attributes of a failed trial: its kind, and why. At most `MAX_REASON` characters.
FAILURE_ATTRIBUTE = "failure"
REASON_ATTRIBUTE = "reason"
MAX_REASON = 300

STATES: dict[Outcome, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}

#: Reports of one trial: rungs, evenly spread epochs, the last and the best.
MAX_REPORTS = 20


def epochs_to_report(epochs: int, rungs: Sequence[int]) -> frozenset[int]:
    """Return which of a trial's epochs Optuna is told as they come: at most `MAX_REPORTS` - 1.

    The first, the rungs, evenly spread ones, the last; the best is known at the end alone.
    """
    wanted = {1, epochs, *rungs}
    spread = max(1, MAX_REPORTS - 1 - len(wanted))
    step = max(1, math.ceil(epochs / spread))
    return frozenset(wanted | set(range(step, epochs + 1, step)))


class Reports:
    """The reported values of one trial, held equal to its curve."""

    def __init__(
        self,
        optuna_study: optuna.Study,
        trial_id: int,
        *,
        metric: str,
        epochs: int,
        rungs: Sequence[int],
    ) -> None:
        self._storage = storage_of(optuna_study)
        self._trial_id = trial_id
        self._sign = loss_sign(DIRECTIONS[metric])
        self._due = epochs_to_report(epochs, rungs)
        #: What Optuna has.
        self._told: dict[int, float] = {}
        self._is_new = True

    def begin(self, values: Mapping[int, float], *, is_new: bool) -> None:
        """Make Optuna's values those of the curve that the trial goes on from.

        Args:
            values: The metric by epoch; empty where the trial starts (over).
            is_new: Whether nobody can have reported anything of it yet.
        """
        self._look(is_new=is_new)
        self._write(values, self._due & set(values))

    def tell(self, values: Mapping[int, float]) -> None:
        """Report those of the epochs that are due.

        Args:
            values: The metric by epoch, of epochs that are stored in our own tables.
        """
        known = set(values)
        self._set({epoch: values[epoch] for epoch in known & (self._due | set(self._told))})

    def end(self, values: Mapping[int, float]) -> None:
        """Add the last and the best epoch, and mend what a former holder may have written.

        Args:
            values: The metric of all epochs.
        """
        if not values:
            return
        best = min(values, key=lambda epoch: (self._sign * values[epoch], epoch))
        self._look(is_new=self._is_new)
        self._write(values, (self._due & set(values)) | {best, max(values)})

    @contextmanager
    def as_a_whole(self) -> Iterator[None]:
        """Take what is written inside for not written where that fails."""
        told = dict(self._told)
        try:
            yield
        except BaseException:
            self._told = told
            raise

    def _look(self, *, is_new: bool) -> None:
        self._is_new = is_new
        if not is_new:
            self._told = dict(self._storage.get_trial(self._trial_id).intermediate_values)

    def _write(self, values: Mapping[int, float], wanted: Set[int]) -> None:
        # Optuna's interface takes no value back: NaN stands where an epoch is not (yet) again.
        self._set({epoch: values.get(epoch, math.nan) for epoch in {*self._told, *wanted}})

    def _set(self, values: Mapping[int, float]) -> None:
        new = {
            epoch: values[epoch]
            for epoch in sorted(values)
            if not _is_same(self._told.get(epoch), values[epoch])
        }
        if new:
            self._storage.set_trial_intermediate_values(self._trial_id, new)
            self._told |= new


def _is_same(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))


def report_whole_curve(
    optuna_study: optuna.Study, trial_id: int, metric: str, values: Mapping[int, float]
) -> None:
    """Report a curve that another trial trained: this one has the same config.

    Args:
        optuna_study: The trial's study.
        trial_id: Optuna's id of it.
        metric: That the study optimises.
        values: The metric by epoch.
    """
    reports = Reports(optuna_study, trial_id, metric=metric, epochs=len(values), rungs=())
    reports.begin(values, is_new=False)
    reports.end(values)


#: Rows of the curve's table; a longer curve is thinned to that many.
MAX_ROWS = 12
#: Of so many trials each has a note; of later ones those alone that stand out. For every note the
#: dashboard looks through all notes, and each is sent at each refresh.
MAX_NOTED = 100


#: What is known of a trial that came to its end.
Ended = Verdict | Settled | Fate


def mend_note(optuna_study: optuna.Study, settled: Settled, slots: Slots) -> None:
    """Write the note of a trial whose worker settled its slot and vanished right after."""
    database = slots.database
    (study,) = (study for study in all_studies(database) if study.id == slots.study_id)
    # A sampler of its own: nothing is to be drawn for this trial any more.
    quiet = optuna.load_study(
        study_name=optuna_study.study_name,
        storage=storage_of(optuna_study),
        sampler=optuna.samplers.RandomSampler(),
    )
    trial = optuna.Trial(quiet, settled.trial_id)
    write_note(trial, settled.slot_id, settled, database, study.metric)


def write_note(
    trial: optuna.Trial, slot_id: int, ended: Verdict | Settled, database: Database, metric: str
) -> None:
    """Put the outcome and the curve of a trial beside it in the dashboard.

    Of the trials after the first `MAX_NOTED`, only those get a note that failed, did not simply
    run through, or are the best so far.
    """
    note = note_of_slot(database, slot_id)
    if trial.number >= MAX_NOTED and not (
        ended.failure
        or note
        or (ended.value is not None and is_best_so_far(database, slot_id, ended.value, metric))
    ):
        return
    points = curve_of_slot(database, slot_id)
    lines = [f"**{(ended.outcome or '').capitalize()}**"]
    if ended.value is not None:
        lines[0] += (
            f": {metric_name(metric)} {metric_value(metric, ended.value)} "
            f"at epoch {ended.best_epoch} of {len(points)}"
        )
    if ended.failure:
        lines[0] += f": {ended.failure.replace('_', ' ')}"
    if ended.reason:
        lines += ["", ended.reason]
    if note:
        lines += ["", note]
    if points:
        lines += ["", *_table(_thinned(points), metric)]
    from optuna_dashboard import save_note  # half a second, and most processes write none

    save_note(trial, "\n".join(lines))


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= MAX_ROWS:
        return points
    step = (len(points) - 1) / (MAX_ROWS - 1)
    return [points[round(step * row)] for row in range(MAX_ROWS)]


def _table(points: list[Point], metric: str) -> list[str]:
    """Return a table in Markdown, the metric that counts first."""
    others = sorted(name for name in points[0].metrics if name != metric)
    names = [name for name in (metric, *others) if name in points[0].metrics]
    titles = ["epoch", *(f"{metric_name(name)}{metric_unit(name)}" for name in names), "images/s"]
    rows = [
        [
            str(point.epoch),
            *(f"{point.metrics[name]:.4g}" for name in names),
            f"{point.images_per_second:,.0f}",
        ]
        for point in points
    ]
    # The dashboard sets columns without a gap between them.
    head = "|" + "|".join(f" &nbsp; {title} " for title in titles) + "|"
    return [head, "|" + " ---: |" * len(titles), *(f"| {' | '.join(row)} |" for row in rows)]


def tell(
    optuna_study: optuna.Study, trial_id: int, ended: Ended, *, known: FrozenTrial | None = None
) -> None:
    """Finish a trial in Optuna; harmless where it is finished already.

    Args:
        optuna_study: The trial's study.
        trial_id: Optuna's id of it.
        ended: What came of it. Failure, reason and the trial whose result it has are kept as user
            attributes.
        known: The trial as the worker that ran it knows it: one that ran to its end is not read
            once more.
    """
    storage, outcome = storage_of(optuna_study), ended.outcome
    assert outcome is not None, "it goes on"
    trial = storage.get_trial(trial_id) if known is None or outcome != "complete" else known
    if trial.state.is_finished():
        return
    state, values = STATES[outcome], _values(trial, outcome, ended.value)
    # Another worker may finish it between Optuna's look and its write: both have the same outcome.
    with suppress(UpdateFinishedTrialError):
        if trial.state == TrialState.WAITING:  # Optuna ends running trials alone
            take_up(optuna_study, trial_id)
        for name, text in ((FAILURE_ATTRIBUTE, ended.failure), (REASON_ATTRIBUTE, ended.reason)):
            if text is not None:
                storage.set_trial_user_attr(trial_id, name, _shortened(text))
        if ended.duplicate_of is not None:
            storage.set_trial_user_attr(trial_id, DUPLICATE_ATTRIBUTE, ended.duplicate_of)
        # As `study.tell` does, which would read the trial a second time.
        optuna_study.sampler.after_trial(optuna_study, trial, state, values)
        storage.set_trial_state_values(trial_id, state, values)


def _values(trial: FrozenTrial, outcome: Outcome, value: float | None) -> list[float] | None:
    """Return the values with which a trial ends: a pruned one has its last report for its value."""
    if outcome == "failed":
        return None
    if outcome == "pruned":
        last = trial.last_step
        reported = None if last is None else trial.intermediate_values[last]
        # NaN: a report of before it started over.
        value = value if reported is not None and math.isnan(reported) else reported
    return None if value is None else [value]


def _shortened(text: str) -> str:
    """The dashboard sends all attributes of all trials at each refresh."""
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."


def sweep(optuna_study: optuna.Study, slots: Slots) -> None:
    """Open slots whose lease ran out, and let no trial stay RUNNING that nobody runs."""
    slots.open_expired()
    tell_what_is_untold(optuna_study, slots)
    trials = [
        trial
        for trial in optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if trial.user_attrs.get(SLOT_ATTRIBUTE) is not None or _was_taken_long_ago(trial)
    ]
    numbers = [number for trial in trials if (number := _slot_of(trial)) is not None]
    fates = slots.fates(numbers)
    for trial in trials:
        number = _slot_of(trial)
        if number is None:
            # Enqueued in the dashboard; its taker was killed before it wrote its slot's number.
            put_back(optuna_study, trial_id_of(optuna_study, trial))
        elif number in fates:
            _sweep_one(optuna_study, trial, fates[number], slots)


def tell_what_is_untold(optuna_study: optuna.Study, slots: Slots) -> None:
    """Finish the trials whose worker settled its slot and vanished right after."""
    for settled in slots.untold():
        mend_note(optuna_study, settled, slots)
        tell(optuna_study, settled.trial_id, settled)
        slots.mark_told(settled.slot_id)


def _sweep_one(optuna_study: optuna.Study, trial: FrozenTrial, fate: Fate, slots: Slots) -> None:
    trial_id = trial_id_of(optuna_study, trial)
    if fate.trial_id not in (None, trial_id):
        reason = f"Begun by a worker that had lost slot {fate.number}, which has another trial."
        tell(optuna_study, trial_id, Verdict("failed", failure="lost", reason=reason))
    elif fate.outcome is not None:
        tell(optuna_study, trial_id, fate)
    elif fate.state in ("open", "waiting"):
        put_back(optuna_study, trial_id)
        if slots.fates([fate.number])[fate.number].state == "held":  # claimed in this moment
            take_up(optuna_study, trial_id)


def _slot_of(trial: FrozenTrial) -> int | None:
    number = trial.user_attrs.get(SLOT_ATTRIBUTE)
    return number if isinstance(number, int) else None


def _was_taken_long_ago(trial: FrozenTrial) -> bool:
    long_ago = datetime.now() - timedelta(seconds=LEASE_SECONDS)
    began = trial.datetime_start
    return "fixed_params" in trial.system_attrs and began is not None and began < long_ago
