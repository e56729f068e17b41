"""Optuna's side of a study: its sampler and pruner, its trials, and what they are told."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import suppress
from datetime import datetime, timedelta
from functools import lru_cache, partial
from importlib.util import find_spec

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from dlnn_search import optuna_version
from dlnn_search.errors import StorageError, StudyError, UsageError, did_you_mean
from dlnn_search.metrics import chance_of, direction_of, perfect_of
from dlnn_search.optuna_version import opened, study_id_of, trial_id_of
from dlnn_search.pruners import HalvingPruner, RungValues, reported_values
from dlnn_search.samplers.coarse_to_fine import CoarseToFine
from dlnn_search.samplers.observations import INFEASIBLE_ATTRIBUTE
from dlnn_search.storage.database import Database, storage_errors
from dlnn_search.storage.halves import SLOT_ATTRIBUTE as SLOT_ATTRIBUTE
from dlnn_search.storage.optuna import TrialStorage, trial_storage
from dlnn_search.storage.slots import LEASE_SECONDS, Slot
from dlnn_search.storage.trials import StoredRungValues
from dlnn_search.study import SAMPLERS, CmaEs, Gp, Qmc, RandomSearch, Sampler, Study
from dlnn_search.worker.first_trials import first_trials

#: A study's user attribute: the name of the sampler that `start --sampler` chose.
SAMPLER_ATTRIBUTE = "sampler"


#: So many times a trial's sampler itself is asked once more.
N_OWN_DRAWS = 10
#: So many refused draws of each trial are kept: its attributes are read again and again.
MAX_REFUSED = 8


def make_sampler(sampler: Sampler, study: Study, slot_number: int, n_draws: int = 0) -> BaseSampler:
    """Return the sampler for one slot, seeded by the study's first name, the slot, and the draw.

    The same seed on two workers would suggest the same trials to both; a seed a slot suggests
    the same trial whichever worker draws it. Two samplers have one seed a study: a quasi-random
    sequence is the workers' common one, and coarse-to-fine draws by seed and trial number; it
    begins with what is expected to learn soon.

    Args:
        sampler: As the study describes it.
        study: Whose name is a part of the seed.
        slot_number: Too.
        n_draws: How many draws of the slot's trial were refused: the next one is another. After
            `N_OWN_DRAWS` of them the whole space is drawn from, evenly: a sampler may insist.

    Raises:
        UsageError: If it needs a library that is not installed.
    """
    seed = _seed(f"{study.lasting_name}:{slot_number}" + (f":{n_draws}" if n_draws else ""))
    if n_draws > N_OWN_DRAWS:
        return optuna.samplers.RandomSampler(seed=seed)
    match sampler:
        case CoarseToFine():
            return _coarse_to_fine(sampler, study).drawing_again(n_draws)
        case RandomSearch():
            return optuna.samplers.RandomSampler(seed=seed)
        case Qmc():
            independent = optuna.samplers.RandomSampler(seed=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.QMCSampler(
                    scramble=True,
                    seed=_seed(study.lasting_name),
                    independent_sampler=independent,
                    warn_independent_sampling=False,
                )
        case CmaEs():
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case Gp():
            check_libraries(sampler)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=sampler.n_startup_trials)


#: `better_than="chance"` asks for that share of the way from guessing to perfection: ten times
#: the noise of 720 guessed clocks, and far below any network that has begun to learn.
CHANCE_MARGIN = 0.1


def make_pruner(study: Study, database: Database | None = None) -> BasePruner:
    """Return the pruner that a study describes.

    Args:
        study: With or without `pruner=Halving(...)`.
        database: Whose curves it reads; None: what trials reported to Optuna.

    Raises:
        StudyError: If nobody knows what chance is for the study's metric.
    """
    halving = study.pruner
    if halving is None:
        return NopPruner()
    judge = halving.judge or study.metric
    values: RungValues = reported_values
    if database is not None:
        values = StoredRungValues(database, study.metric, judge)
    return HalvingPruner(
        halving.first_rung,
        halving.factor,
        better_than=threshold(study),
        until=halving.until,
        values=values,
        judge_direction=direction_of(judge),
    )


def threshold(study: Study) -> float | None:
    """Return the value that a trial must beat to be judged at a rung; None: there is none.

    Raises:
        StudyError: If nobody knows what chance is for the study's metric.
    """
    wanted = None if study.pruner is None else study.pruner.better_than
    if wanted is None or isinstance(wanted, int | float):
        return wanted
    n_classes = getattr(study.data, "n_classes", None)
    chance = chance_of(study.metric, n_classes)
    if chance is None:
        raise StudyError(
            f"Expected Halving(better_than=...) as a number, got 'chance': what guessing reaches "
            f"in '{study.metric}' is not known. Give the value that counts as better than chance."
        )
    return chance + CHANCE_MARGIN * (perfect_of(study.metric) - chance)


@lru_cache(maxsize=8)
def _coarse_to_fine(sampler: CoarseToFine, study: Study) -> CoarseToFine:
    """Return one sampler for all slots of a study: it keeps what it read of earlier trials."""
    seeded = (
        sampler if sampler.seed is not None else sampler.changed(seed=_seed(study.lasting_name))
    )
    if seeded.first_trials is not None:
        return seeded
    return seeded.changed(first_trials=partial(first_trials, study, seeded))


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def check_libraries(sampler: Sampler) -> None:
    """Check that what a sampler needs is installed.

    Raises:
        UsageError: If not, with the command that installs it.
    """
    if isinstance(sampler, Gp) and find_spec("torch") is None:
        raise UsageError(
            "The sampler 'gp' needs PyTorch, which is not installed. "
            "Install it, with pip install '.[gp]' in dlnn-search's folder, or choose another "
            "--sampler."
        )


def sampler_of_name(name: str) -> Sampler:
    """Return a sampler with its usual settings.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in SAMPLERS:
        raise UsageError(f"Unknown sampler '{name}'.{did_you_mean(name, SAMPLERS)}")
    return SAMPLERS[name]()


def choose_sampler(optuna_study: optuna.Study, name: str) -> None:
    """Let all workers of a study, anywhere and from now on, use a sampler of another name.

    Trials are comparable whatever suggested them: this is no part of a study's definition.
    """
    check_libraries(sampler_of_name(name))
    optuna_study.set_user_attr(SAMPLER_ATTRIBUTE, name)


def chosen_sampler(optuna_study: optuna.Study, study: Study) -> Sampler:
    """Return the sampler that a start chose, else the study's own."""
    name = optuna_study.user_attrs.get(SAMPLER_ATTRIBUTE)
    if name is None:
        return study.sampler
    chosen = sampler_of_name(name)
    # The study's own one of that name has its settings.
    return study.sampler if isinstance(study.sampler, type(chosen)) else chosen


def open_optuna_study(study: Study, database: Database) -> optuna.Study:
    """Return Optuna's study of this name, made where it is missing."""
    with storage_errors(database.url):
        storage = trial_storage(database.optuna)
        made = optuna.create_study(
            study_name=study.name,
            storage=storage,
            direction=study.direction,
            pruner=make_pruner(study, database),
            load_if_exists=True,
        )
        if made.metric_names is None:
            with warnings.catch_warnings():
                # The dashboard's axes say the metric's name, else "Objective 0".
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                made.set_metric_names([study.metric.replace("_", " ")])
        return opened(made, storage)


def storage_of(optuna_study: optuna.Study) -> TrialStorage:
    """Return the storage of a study that `open_optuna_study` opened."""
    storage = optuna_version.storage_of(optuna_study)
    assert isinstance(storage, TrialStorage)
    return storage


def has_enqueued(optuna_study: optuna.Study) -> bool:
    """Whether a trial waits that somebody enqueued, for whichever slot is claimed next."""
    waiting = optuna_study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return any(SLOT_ATTRIBUTE not in trial.user_attrs for trial in waiting)


def make_trial(optuna_study: optuna.Study, slot: Slot) -> int:
    """Make a new trial for a slot that never had one; return Optuna's id of it."""
    return storage_of(optuna_study).create_new_trial(
        study_id_of(optuna_study), template_trial=_template(slot)
    )


def begin_made(
    optuna_study: optuna.Study, study: Study, sampler: Sampler, slot: Slot, trial_id: int
) -> optuna.Trial:
    """Return the trial that `make_trial` made, with its sampler."""
    drawing = _drawing(optuna_study, study, sampler, slot)
    return storage_of(optuna_study).begun(drawing, trial_id)


def begin_trial(
    optuna_study: optuna.Study, study: Study, slot: Slot, *, again: bool = False
) -> optuna.Trial:
    """Return the slot's trial: the one it has, one that waits, or a new one.

    Args:
        optuna_study: Where the trial is.
        study: Whose sampler draws it.
        slot: That the trial fills.
        again: Whether this was called before for the same claim, and its answer lost.

    Raises:
        StorageError: If the trial it had was deleted.
    """
    drawing = _drawing(optuna_study, study, chosen_sampler(optuna_study, study), slot)
    trial_id = slot.trial_id
    if trial_id is not None:
        _check_that_it_is_there(optuna_study, slot)
    else:
        trial_id = _begun_or_waiting(optuna_study, slot, is_first=slot.fence == 1 and not again)
    if trial_id is not None:
        take_up(optuna_study, trial_id)
        return optuna.Trial(drawing, trial_id)
    return storage_of(optuna_study).begun(drawing, make_trial(optuna_study, slot))


def _drawing(
    optuna_study: optuna.Study, study: Study, sampler: Sampler, slot: Slot, n_draws: int = 0
) -> optuna.Study:
    """Return Optuna's study with the sampler that draws a slot's trial."""
    optuna_study.sampler = make_sampler(sampler, study, slot.number, n_draws)
    # What its sampler saw for the trial before; Optuna clears it in `ask`, which is not called.
    return storage_of(optuna_study).without_memory(optuna_study)


def may_draw_again(trial: optuna.Trial) -> bool:
    """Whether a trial has no parameters but what its sampler just drew.

    Else somebody enqueued it with some, or an earlier holder stored what it drew.
    """
    stored = storage_of(trial.study).get_trial(trial_id_of(trial.study, trial))
    return not stored.params and "fixed_params" not in stored.system_attrs


def draw_again(trial: optuna.Trial, study: Study, slot: Slot, n_draws: int) -> None:
    """Let a trial whose draws were refused be asked anew, as if nothing had been suggested."""
    trial_id = trial_id_of(trial.study, trial)
    storage_of(trial.study).drop_gathered(trial_id)
    sampler = chosen_sampler(trial.study, study)
    drawing = _drawing(trial.study, study, sampler, slot, n_draws)
    trial.__init__(drawing, trial_id)  # type: ignore[misc]  # who holds it goes on


def remember_infeasible(trial: optuna.Trial) -> None:
    """Let samplers know that the space refuses what was drawn for a trial."""
    storage, trial_id = storage_of(trial.study), trial_id_of(trial.study, trial)
    known = storage.get_trial(trial_id).system_attrs.get(INFEASIBLE_ATTRIBUTE, [])
    if len(known) < MAX_REFUSED and trial.params not in known:
        refused = [*known, trial.params]
        storage.set_trial_system_attr(trial_id, INFEASIBLE_ATTRIBUTE, refused)


def put_back(optuna_study: optuna.Study, trial_id: int) -> None:
    """Let a trial that nobody runs wait for the next who does; its values stay."""
    with suppress(UpdateFinishedTrialError):
        storage_of(optuna_study).set_trial_state_values(trial_id, state=TrialState.WAITING)


def take_up(optuna_study: optuna.Study, trial_id: int) -> None:
    """Let a trial that waited run; harmless where it runs already, or is finished."""
    with suppress(UpdateFinishedTrialError):
        storage_of(optuna_study).set_trial_state_values(trial_id, state=TrialState.RUNNING)


def _template(slot: Slot) -> FrozenTrial:
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING, user_attrs={SLOT_ATTRIBUTE: slot.number}
    )
    template.datetime_start = datetime.now()
    return template


def _check_that_it_is_there(optuna_study: optuna.Study, slot: Slot) -> None:
    """A study may be deleted in the dashboard; SQLite then gives its trials' ids to others."""
    storage, study_id = storage_of(optuna_study), study_id_of(optuna_study)
    with suppress(KeyError):
        number = slot.trial_number
        if number is not None and slot.trial_id == storage.get_trial_id_from_study_id_trial_number(
            study_id, number
        ):
            return
    raise StorageError(
        f"Trial {slot.trial_number} of the study '{optuna_study.study_name}' is gone from Optuna's "
        "tables: its study was deleted, in the dashboard or by another program. Restore a backup "
        "of the database, or start the study in another one with --storage."
    )


def _begun_or_waiting(optuna_study: optuna.Study, slot: Slot, *, is_first: bool) -> int | None:
    """Find the trial that was made for the slot, or take one that somebody enqueued.

    An earlier holder may have made it and vanished, or this one, without hearing so from a
    database that went away. Optuna keeps finished trials in memory: what is read is new.
    """
    storage = storage_of(optuna_study)
    unfinished = optuna_study.get_trials(
        deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)
    )
    long_ago = datetime.now() - timedelta(seconds=LEASE_SECONDS)
    forsaken = None
    for trial in unfinished:
        owner = trial.user_attrs.get(SLOT_ATTRIBUTE)
        if owner == slot.number:
            return trial_id_of(optuna_study, trial)
        # Its taker was killed before it wrote its number, unless it is about to do so.
        taken = trial.datetime_start
        if trial.state == TrialState.WAITING or owner is not None or taken is None:
            continue
        if "fixed_params" in trial.system_attrs and taken < long_ago:
            forsaken = trial_id_of(optuna_study, trial)
    if slot.config is not None:  # what it trains is given: nothing that was enqueued
        return None
    if forsaken is not None and not is_first:
        return forsaken
    for trial in unfinished:
        if trial.state != TrialState.WAITING:
            continue
        if SLOT_ATTRIBUTE in trial.user_attrs:  # begun, and put back: another slot's
            continue
        with suppress(UpdateFinishedTrialError):  # another worker took it, and ended it already
            trial_id = trial_id_of(optuna_study, trial)
            if storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                storage.set_trial_user_attr(trial_id, SLOT_ATTRIBUTE, slot.number)
                return trial_id
    return None
