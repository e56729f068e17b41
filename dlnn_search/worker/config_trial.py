"""A config trial: a config is drawn from the study's space, and our own loop trains it."""

from __future__ import annotations

import functools
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from dlnn_search import data
from dlnn_search.config import Config, CurriculumStage, Data
from dlnn_search.data.splits import TrainingData
from dlnn_search.errors import OutageError, StorageError
from dlnn_search.storage.duplicates import (
    Duplicate,
    find_duplicate,
    look_for_duplicate,
    wait_for_space,
)
from dlnn_search.storage.slots import LostLeaseError, Outcome
from dlnn_search.storage.trials import Point
from dlnn_search.storage.workers import has_trained_here
from dlnn_search.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    Epoch,
    OtherCheckpointError,
)
from dlnn_search.worker.held_trial import HeldTrial, Search
from dlnn_search.worker.optuna_study import (
    draw_again,
    may_draw_again,
    put_back,
    remember_infeasible,
    storage_of,
)
from dlnn_search.worker.verdict import (
    MAX_DRAWS,
    POLICIES,
    REFUSES_ALL,
    USED_UP,
    TrialTimeoutError,
    Verdict,
    failure_of,
)

if TYPE_CHECKING:
    from dlnn_search.training.fit import Decision


def train_config(held: HeldTrial, *, threads: int | None = None) -> Verdict:
    """Train a trial's config, or go on with it, to its end or an interruption.

    Args:
        held: A trial that has begun.
        threads: For TensorFlow; None where the environment has set them before its import.

    Raises:
        LostLeaseError: If the slot was claimed by another worker meanwhile.
        StorageError, DataError: If the worker cannot go on; the slot is still its own.
    """
    try:
        drawn = _draw(held)
        return _train(held, drawn, threads) if isinstance(drawn, Config) else drawn
    except LostLeaseError:
        raise
    except UpdateFinishedTrialError:
        held.search.slots.renew(held.slot)  # raises where a successor was the one who ended it
        reason = f"Trial {held.trial.number} was ended by another program."
        return Verdict("failed", reason=reason, failure="lost")
    except TrialTimeoutError as timeout:
        verdict = timeout.verdict
    except Exception as error:
        verdict = _verdict_of(error, held)
    # Outside of the handler, whose exception holds the model and all that belongs to it.
    gc.collect()
    if verdict.outcome is not None:
        held.send_curve()
    return verdict


def _verdict_of(error: Exception, held: HeldTrial) -> Verdict:
    if isinstance(error, OutageError) and held.is_interrupted():
        return Verdict(None)
    failure = failure_of(error, had_data=_had_data(held.search))
    if failure.kind is None:
        return Verdict(None, reason=failure.reason, trouble=failure.reason)
    if held.slot.memory_failures + 1 < POLICIES[failure.kind].attempts:
        return Verdict(None, reason=failure.reason, failure=failure.kind)
    return Verdict("failed", reason=failure.reason, failure=failure.kind, bug=failure.traceback)


def _had_data(search: Search) -> bool:
    """Whether this machine has had the data: then they may come back."""
    if search.has_opened_data:
        return True
    try:
        return has_trained_here(search.database, search.stored.id)
    except StorageError:
        return False


# Drawn.


def _draw(held: HeldTrial) -> Config | Verdict:
    """Draw until the space allows a config that no other trial has; else say what comes of it.

    What is refused, or another's, costs neither a slot nor a trial: the same one is asked anew,
    unless its parameters are given.
    """
    n_draws = n_refused = n_known = 0
    in_training: int | None = None  # a slot that trains what was drawn here
    while not held.is_interrupted():
        if n_draws:
            study = held.search.study
            again = functools.partial(draw_again, held.trial, study, held.slot, n_draws)
            held.retrying(again)
        n_draws += 1
        try:
            config = _config(held)
        except optuna.TrialPruned as refusal:
            if not held.retrying(lambda: _remember_refused(held)):
                words = f"The space refuses the given parameters. {refusal}".strip()
                return Verdict("failed", reason=words, failure="infeasible")
            n_refused += 1
            if n_refused == MAX_DRAWS:
                return Verdict(None, space_is_over=REFUSES_ALL)
            continue
        n_refused = 0
        noted = held.retrying(functools.partial(_note, held, config))
        if noted.duplicate is None:
            return config
        is_trained = noted.duplicate.outcome is not None
        if not noted.draw_again:
            return Verdict(None, duplicate=noted.duplicate, waits=not is_trained)
        n_known += 1
        in_training = in_training if is_trained else noted.duplicate.slot_id
        if n_known == MAX_DRAWS:
            return held.retrying(functools.partial(_wait_or_end, held, in_training))
    return Verdict(None)


def _config(held: HeldTrial) -> Config:
    if held.slot.config is not None:
        return Config.model_validate(held.slot.config)

    def ask() -> Config:
        # A space may be asked again: what was suggested already stays.
        with storage_of(held.trial.study).gathering(held.trial_id):
            return held.search.study.config(held.trial)

    config = held.retrying(ask)
    config = config.model_copy(update={"data": data.resolve(config.data)})
    # Here and not above: the first import of TensorFlow takes seconds.
    from dlnn_search.training.runtime import resolve_precision

    return resolve_precision(config, _images(held.search, config).train.image_shape)


def _remember_refused(held: HeldTrial) -> bool:
    """Note that the space refused a draw; return whether it can be drawn anew."""
    held.search.slots.renew(held.slot)
    if not may_draw_again(held.trial):
        return False
    remember_infeasible(held.trial)
    return True


@dataclass(frozen=True)
class _Noted:
    """What a look at the other slots came to.

    Attributes:
        duplicate: Another trial with the config.
        draw_again: Nothing was noted: another config can be drawn.
    """

    duplicate: Duplicate | None
    draw_again: bool


def _note(held: HeldTrial, config: Config) -> _Noted:
    """Store all that is known before the training, unless another trial has the config.

    Then another one is drawn; where that cannot be, all is stored, and the slot waits for that
    trial if it is trained just now.
    """
    noted = _Noted(None, draw_again=False)
    search, slot, trials = held.search, held.slot, held.trial.study
    is_drawn, fingerprint, trial_id = slot.config is None, config.fingerprint(), held.trial_id
    where = (search.database, search.stored.id, slot, fingerprint)
    reuse = search.study.reuse

    def look() -> None:
        nonlocal noted
        if is_drawn:
            found = look_for_duplicate(*where, reuse=reuse)
            noted = _Noted(found, found is not None and may_draw_again(held.trial))

    def note() -> None:
        nonlocal noted
        if noted.draw_again:
            return
        storage_of(trials).write_gathered(trial_id)
        plain = config.model_dump(mode="json") if is_drawn else None
        found = find_duplicate(*where, config=plain, reuse=reuse)
        noted = _Noted(found, draw_again=False)
        if found is None and is_drawn:  # else it has no pictures yet
            held.show(config.training.epochs)
        elif found is not None and found.outcome is None:
            put_back(trials, trial_id)

    search.database.at_once(look, note)
    return noted


def _wait_or_end(held: HeldTrial, in_training: int | None) -> Verdict:
    """Let a slot wait that got nothing new; where nothing is trained any more, that is all."""
    search, waits = held.search, False

    def wait() -> None:
        nonlocal waits
        waits = wait_for_space(search.database, search.stored.id, held.slot, in_training)
        if waits:
            put_back(held.trial.study, held.trial_id)

    search.database.at_once(wait)
    return Verdict(None, waits=waits, space_is_over=None if waits else USED_UP)


# Trained.


def _train(held: HeldTrial, config: Config, threads: int | None) -> Verdict:
    from dlnn_search.training.fit import fit

    metric, slot, epochs = held.search.study.metric, held.slot, config.training.epochs
    images = _images(held.search, config)
    told = _Told(held, epochs, damage=_clear_what_is_damaged(held, config))
    if slot.config is not None:
        held.attempt(lambda: held.show(epochs))
    try:
        fitted = fit(
            config,
            images,
            folder=held.folder,
            generation=slot.fence,
            threads=threads,
            on_begin=told.begun,
            on_kept=told.kept,
            on_epoch=told.trained,
            on_progress=held.progress,
        )
    except OutageError:
        held.send_kept()  # it may be the disk that is away, and not the database
        raise
    if not (held.is_pruned or fitted.finished):
        held.send_all()
        return Verdict(None)
    held.send_curve()
    best = fitted.best
    outcome: Outcome = "pruned" if held.is_pruned else "complete"
    return Verdict(outcome, value=best.metrics[metric], best_epoch=best.epoch)


class _Told:
    """What the training tells its trial, and what it is to do then."""

    def __init__(self, held: HeldTrial, epochs: int, damage: str | None) -> None:
        from dlnn_search.training.fit import Decision

        self._held = held
        self._epochs = epochs
        self._damage = damage
        self._rungs = held.expect(epochs)
        self._decision = Decision

    def begun(self, curve: tuple[Epoch, ...]) -> Decision:
        self._held.take_up([_point(epoch) for epoch in curve], self._damage)
        return self._judged(len(curve)) if len(curve) < self._epochs else self._decision.GO_ON

    def trained(self, epoch: Epoch) -> Decision:
        self._held.report(_point(epoch))
        if self._held.is_interrupted():
            return self._decision.STOP
        return self._decision.KEEP if epoch.epoch in self._rungs else self._decision.GO_ON

    def kept(self, n_epochs: int) -> Decision:
        self._held.keep(n_epochs)
        return self._judged(n_epochs)

    def _judged(self, n_epochs: int) -> Decision:
        is_behind = self._held.is_behind(n_epochs)
        return self._decision.STOP if is_behind else self._decision.GO_ON


def _point(epoch: Epoch) -> Point:
    return Point(epoch.epoch, epoch.metrics, epoch.seconds, epoch.images_per_second)


def _images(search: Search, config: Config) -> TrainingData:
    images = _load(config.data, config.training.curriculum)
    search.has_opened_data = True
    return images


@functools.lru_cache(maxsize=4)
def _load(config_data: Data, curriculum: tuple[CurriculumStage, ...]) -> TrainingData:
    """Open the splits once a worker; the trials of a study mostly share them."""
    return data.load(config_data, curriculum)


def _clear_what_is_damaged(held: HeldTrial, config: Config) -> str | None:
    """Remove a checkpoint that cannot be gone on from; return what was wrong with it.

    Raises:
        OutageError: If the disk does not answer.
    """
    checkpoint = Checkpoint(held.folder, config.fingerprint())
    if held.is_new:  # of another database that had its files here
        checkpoint.clear()
        return None
    try:
        checkpoint.load()
    except DamagedCheckpointError:
        checkpoint.clear()
        return "its checkpoint is damaged"
    except OtherCheckpointError:
        checkpoint.clear()
        return "its checkpoint is of another config"
    return None
