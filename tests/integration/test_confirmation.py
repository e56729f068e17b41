"""Confirmation, re-tuning, export and comparison on made-up trials, on every kind of database."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from dlnn_search import ClockNet, Clocks, Config, Conv, RandomSearch, Study, Training
from dlnn_search.commands.confirm import find_study, plan_confirmation, plan_retuning
from dlnn_search.commands.export import export_best
from dlnn_search.config import read_config
from dlnn_search.config.training import fresh_seeds
from dlnn_search.errors import UsageError
from dlnn_search.results.comparison import compared, differences, importances
from dlnn_search.results.confirmation import Candidate, Confirmation, confirmation, retuning
from dlnn_search.storage.control import keep_rate, kept_rate
from dlnn_search.storage.database import Database
from dlnn_search.storage.schema import slots
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import StoredStudy, linked, parent_of, register, seeds_of
from dlnn_search.storage.trials import Point, add_points
from dlnn_search.study import Study as AnyStudy
from dlnn_search.worker.optuna_study import begin_trial, open_optuna_study
from dlnn_search.worker.reports import tell
from dlnn_search.worker.verdict import Verdict

from .slot_life import give_trials, note_config

Value = Callable[[Config], float | None]


def space(trial: optuna.Trial) -> Config:
    filters = trial.suggest_int("filters", 1, 64)
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    return Config(
        model=ClockNet(blocks=(Conv(filters=filters),)), training=Training(learning_rate=rate)
    )


STUDY = Study(
    space=space,
    data=Clocks(source="rendered"),
    minimize="common_sense_error",
    sampler=RandomSearch(),
    name="made-up",
)


def work_off(database: Database, study: AnyStudy, value: Value, n: int | None = None) -> None:
    """Settle a study's slots by a worker's own steps, without training; None fails."""
    stored = register(database, study.name, study.definition())
    queue = Slots(database, stored.id)
    if n is not None:
        give_trials(queue, n)
    optuna_study = open_optuna_study(study, database)
    while (slot := queue.claim("w")) is not None:
        trial = begin_trial(optuna_study, study, slot)
        queue.begin(slot, trial._trial_id, trial.number)
        if slot.config is None:
            config = study.config(trial)
            note_config(database, slot, config.model_dump(mode="json"))
        else:
            config = Config.model_validate(slot.config)
        reached = value(config)
        outcome = "failed" if reached is None else "complete"
        if reached is not None:
            metrics = {study.metric: reached}
            add_points(database, slot.id, slot.fence, [Point(1, metrics, 2.0, 1.0)])
        queue.settle(slot, outcome, value=reached, best_epoch=1)  # type: ignore[arg-type]
        tell(optuna_study, trial._trial_id, Verdict(outcome, value=reached))  # type: ignore[arg-type]


def filters_of(config: Config | Mapping[str, object]) -> int:
    config = config if isinstance(config, Config) else Config.model_validate(config)
    assert isinstance(config.model, ClockNet)
    block = config.model.blocks[0]
    assert isinstance(block, Conv)
    return block.filters


def flattered(config: Config) -> float | None:
    """A wide net is good; one net was lucky with the search's seed, and seeds differ a little."""
    seed = config.training.seed
    luck = -50.0 if seed == 0 and filters_of(config) % 2 else 0.0
    return 100.0 - filters_of(config) + luck + 0.1 * (seed % 1000)


@pytest.fixture
def searched(database: Database) -> tuple[Database, StoredStudy]:
    work_off(database, STUDY, flattered, n=12)
    return database, register(database, STUDY.name, STUDY.definition())


def confirmed(database: Database, stored: StoredStudy, top: int, seeds: int) -> Confirmation:
    planned = plan_confirmation(database, stored, top=top, seeds=seeds, study_file=None)
    work_off(database, planned.study, flattered)
    result = confirmation(database, stored)
    assert result is not None
    return result


def test_fresh_seeds_undo_the_search_s_luck_and_export_prefers_their_winner(
    searched: tuple[Database, StoredStudy], tmp_path: Path
) -> None:
    database, stored = searched
    before = export_best(database, stored, 1, tmp_path / "before.json")
    assert "Not confirmed" in before.words and "dlnn-search confirm made-up" in before.words
    result = confirmed(database, stored, top=12, seeds=3)
    winner = result.winner
    assert winner is not None
    widest = max(filters_of(one.config) for one in result.candidates)
    assert filters_of(winner.config) == widest
    assert all(len(one.values) == 3 for one in result.candidates)
    assert {one.config["training"]["seed"] for one in result.candidates} == {0}
    assert result.curse is not None and result.curse > 0
    assert winner.half_interval == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert sorted(one.search_rank for one in result.candidates) == list(range(1, 13))
    after = export_best(database, stored, 2, tmp_path / "after.json")
    assert "Confirmed: trial" in after.words
    exported = json.loads(after.paths[0].read_text())
    assert exported["origin"]["trial"] == winner.trial
    assert exported["origin"]["confirmed_seeds"] == 3
    assert exported["training"]["seed"] == 0


def test_asked_again_only_what_is_new_is_trained(searched: tuple[Database, StoredStudy]) -> None:
    database, stored = searched
    confirmed(database, stored, top=2, seeds=2)

    def new(top: int, seeds: int) -> int:
        return plan_confirmation(database, stored, top=top, seeds=seeds, study_file=None).n_new

    assert new(2, 2) == 0
    assert new(2, 3) == 2
    assert new(3, 3) == 3
    unfinished = confirmation(database, stored)
    assert unfinished is not None and unfinished.n_left == 5 and unfinished.winner is None
    own = linked(database, stored, "confirm")
    assert own is not None and parent_of(database, own.id) == "made-up"
    with pytest.raises(UsageError, match=r"Name '.*' instead"):
        plan_confirmation(database, own, top=1, seeds=2, study_file=None)


def test_any_worker_finds_a_linked_study_in_the_database_and_its_space_is_never_searched(
    searched: tuple[Database, StoredStudy],
) -> None:
    database, stored = searched
    planned = plan_confirmation(database, stored, top=1, seeds=2, study_file=None)
    found = find_study("made-up-confirm", database.url, quick=False, study_file=None)
    assert found.definition() == planned.study.definition()
    assert found.metric == stored.metric
    with pytest.raises(UsageError, match="dlnn-search retune made-up"):
        find_study("made-up-retune", database.url, quick=False, study_file=None)
    trial = optuna.create_study(study_name="made-up-confirm").ask()
    with pytest.raises(Exception, match="has no space to search"):
        found.config(trial)


def test_a_seed_that_fails_puts_its_config_behind_those_that_never_do(
    searched: tuple[Database, StoredStudy],
) -> None:
    database, stored = searched
    planned = plan_confirmation(database, stored, top=3, seeds=3, study_file=None)
    best = confirmation(database, stored)
    assert best is not None
    doomed = min(best.candidates, key=lambda one: one.search_rank)
    _, second, _ = fresh_seeds("made-up", "confirm", 3)
    work_off(
        database,
        planned.study,
        lambda config: (
            None
            if config.training.seed == second and filters_of(config) == filters_of(doomed.config)
            else 10.0 + config.training.seed % 1000 - filters_of(config) / 64
        ),
    )
    result = confirmation(database, stored)
    assert result is not None
    last = result.candidates[-1]
    assert (last.trial, last.n_failed, len(last.values)) == (doomed.trial, 1, 2)
    assert result.winner is not None and result.winner.n_failed == 0


def test_the_selected_config_is_tried_at_rates_around_its_own_and_joins_the_confirmation(
    searched: tuple[Database, StoredStudy],
) -> None:
    database, stored = searched
    planned = plan_retuning(database, stored, steps=2, factor=2.0, study_file=None)
    assert planned.n_new == 4
    work_off(database, planned.study, lambda config: -1000 - (config.training.learning_rate or 1))
    rates = retuning(database, stored)
    own = next(one for one in rates if one.is_own)
    assert [one.rate / own.rate for one in rates] == pytest.approx([0.25, 0.5, 1, 2, 4], rel=1e-4)
    plan_confirmation(database, stored, top=3, seeds=2, study_file=None)
    result = confirmation(database, stored)
    assert result is not None
    assert {one.study for one in result.candidates} == {"made-up-retune"}


def seeds_of_confirm(database: Database, stored: StoredStudy) -> list[int]:
    own = linked(database, stored, "confirm")
    assert own is not None
    return seeds_of(database, [own.id])


def test_seeds_that_confirm_are_no_trial_s_of_the_search_and_the_same_for_all_configs(
    database: Database,
) -> None:
    first, taken, third = fresh_seeds("made-up", "confirm", 3)

    def any_seed(trial: optuna.Trial) -> Config:
        seed = trial.suggest_categorical("seed", [0, 1, 2, 3, taken])
        model = ClockNet(blocks=(Conv(filters=trial.suggest_int("filters", 1, 64)),))
        return Config(model=model, training=Training(seed=seed))

    study = dataclasses.replace(STUDY, space=any_seed)
    work_off(database, study, lambda config: float(filters_of(config)), n=30)
    stored = register(database, study.name, study.definition())
    assert set(seeds_of(database, [stored.id])) == {0, 1, 2, 3, taken}
    result = confirmed(database, stored, top=4, seeds=2)
    assert seeds_of_confirm(database, stored) == [first, third]
    assert [one.numbers for one in result.candidates] == [(first, third)] * 4


def test_a_confirmation_that_an_earlier_version_began_goes_on_with_its_seeds(
    searched: tuple[Database, StoredStudy],
) -> None:
    database, stored = searched
    plan_confirmation(database, stored, top=2, seeds=2, study_file=None)
    own = linked(database, stored, "confirm")
    assert own is not None
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(slots.c.id, slots.c.config).where(slots.c.study_id == own.id)
        ).all()
        for place, row in enumerate(rows):
            training = {**row.config["training"], "seed": 1 + place // 2}
            connection.execute(
                slots.update()
                .where(slots.c.id == row.id)
                .values(config={**row.config, "training": training})
            )
    assert plan_confirmation(database, stored, top=2, seeds=2, study_file=None).n_new == 0
    assert plan_confirmation(database, stored, top=2, seeds=3, study_file=None).n_new == 2
    assert seeds_of_confirm(database, stored) == [1, 2, 3]
    result = confirmation(database, stored)
    assert result is not None
    assert [one.config["training"]["seed"] for one in result.candidates] == [0, 0]


def candidate(numbers: tuple[int, ...], values: tuple[float, ...]) -> Candidate:
    return Candidate("made-up", 0, {}, 0.0, values, numbers, n_failed=0, n_left=0)


def test_configs_are_told_apart_by_their_differences_seed_by_seed() -> None:
    hard_and_easy = candidate((1, 2, 3), (1.0, 5.0, 9.0))
    always_a_little_better = candidate((3, 1, 2), (8.5, 0.4, 4.5))
    now_and_then_better = candidate((1, 2, 3), (0.0, 6.0, 8.0))
    assert always_a_little_better.half_interval == pytest.approx(10.07, rel=1e-3)
    assert hard_and_easy.differs_from(always_a_little_better)
    assert not hard_and_easy.differs_from(now_and_then_better)
    assert not hard_and_easy.differs_from(candidate((1, 7, 8), (0.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    ("top", "seeds", "said"), [(0, 5, "--top 0"), (5, 1, "--seeds 1"), (5, 101, "--seeds 101")]
)
def test_numbers_that_cannot_be_meant_are_refused(
    database: Database, top: int, seeds: int, said: str
) -> None:
    stored = register(database, STUDY.name, STUDY.definition())
    with pytest.raises(UsageError, match=said):
        plan_confirmation(database, stored, top=top, seeds=seeds, study_file=None)
    with pytest.raises(UsageError, match="no complete trial"):
        plan_confirmation(database, stored, top=1, seeds=2, study_file=None)


def test_searches_are_compared_at_equal_budgets(searched: tuple[Database, StoredStudy]) -> None:
    database, stored = searched
    other = dataclasses.replace(STUDY, name="other")
    work_off(database, other, lambda config: 7.0, n=3)
    other_stored = register(database, other.name, other.definition())
    first, second = compared(database, [stored, other_stored])
    assert (len(first.best), len(second.best)) == (12, 3)
    assert second.after_trials(99) == 7.0 and second.after_seconds(1.9) is None
    assert first.seconds[-1] == pytest.approx(24.0)
    assert all(a >= b for a, b in zip(first.best, first.best[1:], strict=False) if a and b)
    with pytest.raises(UsageError, match="two or more"):
        compared(database, [stored, stored])


def test_a_study_and_its_confirmation_have_the_same_data_and_epochs(
    searched: tuple[Database, StoredStudy],
) -> None:
    database, stored = searched
    confirmed(database, stored, top=2, seeds=2)
    own = linked(database, stored, "confirm")
    assert own is not None
    assert differences(compared(database, [stored, own])) == []
    longer = dataclasses.replace(STUDY, name="longer", epochs=77)
    work_off(database, longer, lambda config: 7.0, n=1)
    other = register(database, longer.name, longer.definition())
    assert differences(compared(database, [other, own])) == ["epochs"]


def test_all_distinct_configs_are_exported_and_told_where_fewer_than_asked_for_are_there(
    database: Database, tmp_path: Path
) -> None:
    """Ten trials, two configs: the better one nine times."""

    def narrow(trial: optuna.Trial) -> Config:
        trial.suggest_float("unused", 0, 1)
        return Config(model=ClockNet(blocks=(Conv(filters=8 if trial.number else 4),)))

    study = dataclasses.replace(STUDY, space=narrow)
    work_off(database, study, lambda config: float(-filters_of(config)), n=10)
    stored = register(database, study.name, study.definition())
    exported = export_best(database, stored, 3, tmp_path / "best.json")
    assert [filters_of(read_config(path)) for path in exported.paths] == [8, 4]
    assert exported.words.startswith(
        "Asked for the best 3: 'made-up' has 10 complete trials, 2 distinct configs.\n"
    )
    both = export_best(database, stored, 2, tmp_path / "both.json")
    assert len(both.paths) == 2 and "Asked for" not in both.words
    assert plan_confirmation(database, stored, top=2, seeds=2, study_file=None).n_new == 4


def test_what_mattered_comes_first(searched: tuple[Database, StoredStudy]) -> None:
    database, stored = searched
    with pytest.raises(UsageError, match="at least 10"):
        importances(database, _few(database))
    work_off(database, STUDY, lambda config: float(100 - filters_of(config)), n=60)
    assert importances(database, stored).rows[0].name == "filters"


def _few(database: Database) -> StoredStudy:
    few = dataclasses.replace(STUDY, name="few")
    work_off(database, few, lambda config: 1.0, n=2)
    return register(database, few.name, few.definition())


def test_a_measured_rate_is_kept_once(database: Database) -> None:
    stored = register(database, STUDY.name, STUDY.definition())
    assert kept_rate(database, stored.id) is None
    assert keep_rate(database, stored.id, 0.01).rate == 0.01
    assert keep_rate(database, stored.id, 0.5).rate == 0.01
    found = kept_rate(database, stored.id)
    assert found is not None and found.rate == 0.01
